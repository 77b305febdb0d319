"""A W&B on loopback for the real client: whose key it is, refusals, and a service that is slow.

It answers the two queries with which `wandb.Api` asks for its user, and refuses a key it does not know with 401, as the
service does. It keeps no runs: whatever else is asked gets an error.

    with WandbEmulator() as service:
        monkeypatch.setenv("WANDB_BASE_URL", service.url)
"""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

KEY = "canary0key0" + "0123456789abcdef" * 2
USER = {
    "id": "VXNlcjox",
    "name": "A User",
    "username": "a-user",
    "email": "user@example.com",
    "admin": False,
    "flags": "{}",
    "entity": "a-team",
    "deletedAt": None,
    "apiKeys": {"edges": []},
    "teams": {"edges": [{"node": {"name": "a-team"}}]},
}


class WandbEmulator:
    """A service with one user. A context manager: it serves while it is entered."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        """Method and path of every request, and the operation that was asked for."""
        self.keys = {KEY}
        self.latency = 0.0
        """Seconds before each answer."""
        self.status = 0
        """The status of every answer; 0 leaves it to the key."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"service": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), name="wandb", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    service: WandbEmulator
    protocol_version = "HTTP/1.1"
    timeout = 60

    def log_message(self, *_: object) -> None:
        """Stay quiet: `requests` is the log."""

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        query = ""
        with contextlib.suppress(ValueError, TypeError):
            query = json.loads(body)["query"]
        words = [*query.split(), "", ""]
        self.service.requests.append(f"{self.command} {self.path} {words[1]}".strip())
        time.sleep(self.service.latency)
        with contextlib.suppress(OSError):  # who has given up is not told
            self._send(*self._answer(query))

    do_GET = do_POST = _handle  # noqa: N815  the names that http.server looks for

    def _answer(self, query: str) -> tuple[int, Any]:
        if self.service.status:
            return self.service.status, {"errors": [{"message": "the service has trouble"}]}
        accepted = {f"Basic {base64.b64encode(f'api:{key}'.encode()).decode()}" for key in self.service.keys}
        if self.headers.get("Authorization") not in accepted:
            return 401, {"errors": [{"message": "user is not logged in", "path": ["viewer"]}], "data": None}
        if self.path == "/graphql" and "viewer" in query:
            return 200, {"data": {"viewer": USER}}
        return 400, {"errors": [{"message": "this emulator knows nothing of it"}]}

    def _send(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
