r"""A Kaggle service on loopback for the real kaggle client: keys, kernels, runs, logs and datasets.

The client can be configured to use `http://localhost` instead of Kaggle (`KAGGLE_API_ENVIRONMENT=LOCALHOST`); the
emulator is the proxy (`http_proxy`) for that address, and answers by itself. A run advances by one act each time that
its state is requested. Cannot: follow changes of Kaggle, or reproduce refusals that are not listed here.

    with KaggleEmulator() as kaggle:
        kaggle.datasets["somebody/kaggle-training-secrets"] = Dataset()
        kaggle.next_run = [Act("QUEUED"), Act("RUNNING", "step 1\n"), Act("COMPLETE", "done\n")]
        subprocess.run([...], env=kaggle.environment(home))
        assert kaggle.pushes[0]["isPrivate"]
"""

from __future__ import annotations

import base64
import json
import os
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from loopback import Answer, LoopbackHandler, LoopbackServer, json_answer

USER = "somebody"
KEY = "canary0kaggle0" + "0123456789abcdef" * 2
TOKEN = "KGAT_canary0" + "fedcba9876543210" * 2
STATES = ("QUEUED", "RUNNING", "COMPLETE", "ERROR", "CANCEL_REQUESTED", "CANCEL_ACKNOWLEDGED")
ENDS = ("COMPLETE", "ERROR", "CANCEL_ACKNOWLEDGED")


@dataclass(frozen=True)
class Act:
    """One act of a run: its state, the new lines of its log, and the reason of a failure."""

    state: str
    log: str = ""
    """Each line is an event."""
    reason: str = ""


@dataclass
class Kernel:
    """A notebook on Kaggle, and its newest run."""

    is_private: bool = True
    version: int = 1
    run: Sequence[Act] = (Act("COMPLETE"),)
    at: int = -1
    """The index of the act that was returned last."""

    @property
    def act(self) -> Act:
        """Return the current act of the run."""
        return self.run[max(0, self.at)]

    def events(self) -> list[dict[str, Any]]:
        """Return the log so far, in Kaggle's format."""
        lines = re.findall(r".*\n", "".join(act.log for act in self.run[: max(0, self.at) + 1]))
        return [{"stream_name": "stdout", "time": number / 10, "data": line} for number, line in enumerate(lines)]


@dataclass
class Dataset:
    """A dataset on Kaggle."""

    is_private: bool = True
    files: Sequence[str] = ("secrets.json",)


def _refuse(status: int, message: str) -> Answer:
    return json_answer({"code": status, "message": message}, status)


class KaggleEmulator(LoopbackServer[int]):
    """A service with one user. A context manager: it serves while entered."""

    requests: list[str]
    """The API method of every request."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.pushes: list[dict[str, Any]] = []
        """The content of each accepted push."""
        self.kernels: dict[str, Kernel] = {}
        self.datasets: dict[str, Dataset] = {}
        self.next_run: Sequence[Act] = (Act("QUEUED"), Act("RUNNING"), Act("COMPLETE"))
        """The acts of a pushed kernel's run."""
        self.push_error = ""
        """The reason for refusing every push, which Kaggle answers with status 200; empty to accept pushes."""
        self.slug = ""
        """The name that Kaggle gives a pushed kernel; empty to keep the pushed name."""
        self.unusable: Sequence[str] = ()
        """The datasets that Kaggle does not attach to a pushed kernel."""
        self.quota: tuple[float, float] | None = (8.5, 30.0)
        """GPU hours used and allowed; None if the account has no quota."""
        self.stream_cuts = 0
        """The number of next log streams that end in the middle of the log."""
        self.keeps_log = True
        """Whether the log is available after the run."""
        self.changed = threading.Condition()

    def add_fault(self, match: str, kind: int = 0, times: int = 1, *, after: int = 0) -> None:
        """Answer the next requests to this API method with an HTTP status; 0 closes the connection instead."""
        super().add_fault(match, kind, times, after=after)

    def environment(self, home: Path, **account: str) -> dict[str, str]:
        """Return an environment in which the client uses this service, with this account and no other."""
        foreign = re.compile(r"KAGGLE|HTTPS?_PROXY|NO_PROXY|ALL_PROXY|XDG_CONFIG_HOME", re.IGNORECASE)
        kept = {name: value for name, value in os.environ.items() if not foreign.match(name)}
        given = account or {"KAGGLE_USERNAME": USER, "KAGGLE_KEY": KEY}
        return kept | {"HOME": str(home), "KAGGLE_API_ENVIRONMENT": "LOCALHOST", "http_proxy": self.url} | given

    # ── answers ────────────────────────────────────────────────────────────────────────────────────────────────────

    def answer(self, name: str, asked: dict[str, Any]) -> Answer:
        """Return the answer to a request with a valid key."""
        if name == "SaveKernel":
            return self._save(asked)
        if name == "GetAcceleratorQuotaStatistics":
            return json_answer(self._quota())
        if "Kernel" in name:
            ref = f"{asked['userName']}/{asked['kernelSlug']}"
            return self._about_kernel(name, ref, self.kernels.get(ref))
        ref = f"{asked['ownerSlug']}/{asked['datasetSlug']}"
        return self._about_dataset(name, ref, self.datasets.get(ref))

    def _about_dataset(self, name: str, ref: str, dataset: Dataset | None) -> Answer:
        if dataset is None:
            return _refuse(403, "Permission 'datasets.get' was denied")
        if name == "GetDatasetMetadata":
            owner, _, slug = ref.partition("/")
            return json_answer({"info": {"datasetSlug": slug, "ownerUser": owner, "isPrivate": dataset.is_private}})
        if name == "ListDatasetFiles":
            return json_answer({"datasetFiles": [{"name": file, "totalBytes": 900} for file in dataset.files]})
        return _refuse(404, "this emulator knows nothing of it")

    def _save(self, asked: dict[str, Any]) -> Answer:
        if self.push_error:
            return json_answer({"error": self.push_error})
        owner, _, slug = asked["slug"].partition("/")
        slug = self.slug or slug
        before = self.kernels.get(f"{owner}/{slug}")
        version = before.version + 1 if before else 1
        self.kernels[f"{owner}/{slug}"] = Kernel(asked["isPrivate"], version, self.next_run)
        self.pushes.append(asked)
        lost = [source for source in asked["datasetDataSources"] if source in self.unusable]
        return json_answer(
            {
                "ref": f"/code/{owner}/{slug}",
                "url": f"https://www.kaggle.com/code/{owner}/{slug}",
                "versionNumber": version,
                "invalidDatasetSources": lost,
            }
        )

    def _about_kernel(self, name: str, ref: str, kernel: Kernel | None) -> Answer:
        if kernel is None:  # Kaggle answers as for another user's kernel
            return _refuse(403, "Permission 'kernels.get' was denied")
        if name == "GetKernel":
            slug = ref.partition("/")[2]
            about = {"slug": slug, "language": "python", "kernelType": "notebook"}
            return json_answer(
                {
                    "metadata": {**about, "ref": ref, "title": slug, "isPrivate": kernel.is_private},
                    "blob": {**about, "source": "{}"},
                }
            )
        if name == "GetKernelSessionStatus":
            with self.changed:
                kernel.at = min(kernel.at + 1, len(kernel.run) - 1)
                self.changed.notify_all()
            failure = {"failureMessage": kernel.act.reason} if kernel.act.reason else {}
            return json_answer({"status": kernel.act.state, **failure})
        if name == "ListKernelSessionOutput":
            return json_answer({"files": [], "log": json.dumps(kernel.events()) if self.keeps_log else ""})
        return _refuse(404, "this emulator knows nothing of it")

    def _quota(self) -> dict[str, Any]:
        if self.quota is None:
            return {}
        used, allowed = (f"{hours * 3600:.0f}s" for hours in self.quota)
        return {
            "quotaRefreshTime": "2026-11-28T00:00:00Z",
            "gpuQuota": {"timeUsed": used, "totalTimeAllowed": allowed},
            "tpuQuota": {"timeUsed": "0s", "totalTimeAllowed": "72000s"},
        }


class _Handler(LoopbackHandler):
    """One connection of a client."""

    service: KaggleEmulator

    def _handle(self) -> None:
        body = self.read_body()
        path = urlsplit(self.path).path  # a proxy receives the whole address
        stream = re.fullmatch(r"/api/v1/kernels/logs/stream/([^/]+/[^/]+)", path)
        name = "LogStream" if stream else path.rpartition("/")[2]
        self.service.requests.append(name)
        fault = self.service._take_fault(name)
        if fault == 0:
            self.close_connection = True
        elif fault:
            self.send(_refuse(fault, "the service has trouble"))
        elif name == "IntrospectToken":
            known = json.loads(body).get("token") == TOKEN
            self.send(json_answer({"active": True, "username": USER} if known else {"active": False}))
        elif not self._may_ask():
            self.send(_refuse(401, "Unauthenticated"))
        elif stream:
            self._stream(self.service.kernels.get(stream[1]))
        else:
            self.send(self.service.answer(name, json.loads(body)))

    do_GET = do_POST = _handle  # noqa: N815  the names that http.server looks for

    def _may_ask(self) -> bool:
        basic = base64.b64encode(f"{USER}:{KEY}".encode()).decode()
        return self.headers.get("Authorization") in {f"Basic {basic}", f"Bearer {TOKEN}"}

    def _stream(self, kernel: Kernel | None) -> None:
        """Send a log while it grows, or the stored log of a run that is over."""
        if kernel is None or kernel.act.state == "QUEUED":
            self.send(_refuse(404, "no session has a log yet"))
        elif kernel.act.state in ENDS:
            self.send(json_answer(kernel.events() if self.service.keeps_log else []))
        else:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.flush()  # the log may have no event yet
            self._send_events(kernel)
            self.close_connection = True

    def _send_events(self, kernel: Kernel) -> None:
        sent = 0
        while not self.service._closing.is_set():
            with self.service.changed:
                events, is_over = kernel.events(), kernel.act.state in ENDS
                if sent == len(events) and not is_over:
                    self.service.changed.wait(1)
                    continue
            for event in events[sent:]:
                self._send_chunk(json.dumps(event))
                if self.service.stream_cuts:
                    self.service.stream_cuts -= 1
                    return  # without the last chunk, which would end the answer
            sent = len(events)
            if is_over:
                self._send_chunk("END_OF_LOG")
                self.wfile.write(b"0\r\n\r\n")
                return

    def _send_chunk(self, data: str) -> None:
        chunk = f"data: {data}\n\n".encode()
        self.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
        self.wfile.flush()
