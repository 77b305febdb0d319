"""A W&B service on loopback for the real client: the user of a key, refusals, and slow answers.

It answers the two queries with which `wandb.Api` asks for its user, and refuses an unknown key with 401, as the service
does. It stores no runs: every other query gets an error.

    with WandbEmulator() as service:
        monkeypatch.setenv("WANDB_BASE_URL", service.url)
"""

from __future__ import annotations

import base64
import contextlib
import json
import time
from typing import Never

from loopback import Answer, LoopbackHandler, LoopbackServer, json_answer

KEY = "canary0key0" + "0123456789abcdef" * 2
USER = {
    "id": "VXNlcjox",
    "name": "A User",
    "username": "a-user",
    "email": "user@example.com",
    "admin": False,
    "flags": "{}",
    "deletedAt": None,
    "apiKeys": {"edges": []},
    "teams": {"edges": [{"node": {"name": "a-team"}}]},
}


class WandbEmulator(LoopbackServer[Never]):
    """A service with one user. A context manager: it serves while entered."""

    requests: list[str]
    """Method, path and GraphQL operation of every request."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.keys = {KEY}
        self.entity: str | None = "a-team"
        """The user's default entity."""
        self.latency = 0.0
        """Seconds before each answer."""
        self.status = 0
        """The status of every answer; 0 if it depends on the key."""


class _Handler(LoopbackHandler):
    """One connection of a client."""

    service: WandbEmulator

    def _handle(self) -> None:
        body = self.read_body()
        query = ""
        with contextlib.suppress(ValueError, TypeError):
            query = json.loads(body)["query"]
        words = [*query.split(), "", ""]
        self.service.requests.append(f"{self.command} {self.path} {words[1]}".strip())
        time.sleep(self.service.latency)
        self.send(self._answer(query))

    do_GET = do_POST = _handle  # noqa: N815  the names that http.server looks for

    def _answer(self, query: str) -> Answer:
        if self.service.status:
            return json_answer({"errors": [{"message": "the service has trouble"}]}, self.service.status)
        accepted = {f"Basic {base64.b64encode(f'api:{key}'.encode()).decode()}" for key in self.service.keys}
        if self.headers.get("Authorization") not in accepted:
            return json_answer(
                {"errors": [{"message": "user is not logged in", "path": ["viewer"]}], "data": None}, 401
            )
        if self.path == "/graphql" and "viewer" in query:
            return json_answer({"data": {"viewer": {**USER, "entity": self.service.entity}}})
        return json_answer({"errors": [{"message": "this emulator knows nothing of it"}]}, 400)
