r"""A Kaggle service on loopback for the real kaggle client: keys, kernels, their versions and sessions, logs, datasets.

The client can be configured to use `http://localhost` instead of Kaggle (`KAGGLE_API_ENVIRONMENT=LOCALHOST`); the
emulator is the proxy (`http_proxy`) for that address, and answers by itself. Each push makes a version of a kernel with
a session of its own, and sessions run side by side. `session_of` makes them: a `Session` advances by one act each time
that its state is requested, a `ProgramSession` is a real program. `advance` passes hours: they are counted against the
quota, sessions are killed at the time limit, and the quota is renewed every week.

Cannot: follow changes of Kaggle, or reproduce refusals that are not listed here. Unknown of Kaggle, and assumed: the
message of a push when the quota is used up; running sessions then go on.

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
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from loopback import Answer, LoopbackHandler, LoopbackServer, html_answer, json_answer
from slugify import slugify

USER = "somebody"
KEY = "canary0kaggle0" + "0123456789abcdef" * 2
TOKEN = "KGAT_canary0" + "fedcba9876543210" * 2
ENDS = ("COMPLETE", "ERROR", "CANCEL_ACKNOWLEDGED")
WEEK = 168.0  # hours
START = datetime(2026, 11, 21, tzinfo=UTC)


@dataclass(frozen=True)
class Act:
    """One act of a run: its state, the new lines of its log, and the reason of a failure."""

    state: str
    log: str = ""
    """Each line is an event."""
    reason: str = ""


class Session:
    """The run of one version, which follows its acts; the last one stays."""

    def __init__(self, *acts: Act, gpu: bool = True) -> None:
        self.acts = list(acts) or [Act("COMPLETE")]
        self.at = -1
        """The index of the act that was returned last."""
        self.gpu = gpu
        self.hours = 0.0
        """The time that it has been running, in the emulator's hours."""

    @property
    def state(self) -> str:
        """Return the state as Kaggle names it."""
        return self._act.state

    @property
    def reason(self) -> str:
        """Return the reason of a failure."""
        return self._act.reason

    @property
    def log(self) -> str:
        """Return the log so far."""
        return "".join(act.log for act in self.acts[: max(0, self.at) + 1])

    @property
    def is_over(self) -> bool:
        """Return whether the session has ended."""
        return self.state in ENDS

    @property
    def _act(self) -> Act:
        return self.acts[max(0, self.at)]

    def look(self) -> None:
        """Advance by one act: its state is being requested."""
        self.at = min(self.at + 1, len(self.acts) - 1)

    def end(self, state: str, reason: str) -> None:
        """End the session from outside."""
        self.acts = [*self.acts[: max(0, self.at) + 1], Act(state, reason=reason)]
        self.at = len(self.acts) - 1

    def events(self) -> list[dict[str, Any]]:
        """Return the log so far, in Kaggle's format."""
        lines = re.findall(r".*\n", self.log)
        return [{"stream_name": "stdout", "time": number / 10, "data": line} for number, line in enumerate(lines)]


class ProgramSession(Session):
    """A session that runs a program, and ends as it does; from outside, its process group is killed."""

    def __init__(
        self, command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, gpu: bool = True
    ) -> None:
        super().__init__(Act("RUNNING"), gpu=gpu)
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  open as long as the session
        self._process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=self._output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip

    @property
    def log(self) -> str:
        """Return what the program has printed so far."""
        size = os.fstat(self._output.fileno()).st_size
        return os.pread(self._output.fileno(), size, 0).decode(errors="replace")

    @property
    def _act(self) -> Act:
        if super()._act.state not in ENDS and (status := self._process.poll()) is not None:
            super().end("ERROR" if status else "COMPLETE", f"exit status {status}" if status else "")
        return super()._act

    def end(self, state: str, reason: str) -> None:
        """Kill the program at once, as a machine that vanishes does."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        super().end(state, reason)


@dataclass
class Kernel:
    """A notebook on Kaggle and the sessions of its versions, oldest first; None for a version that was never run."""

    is_private: bool = True
    sessions: list[Session | None] = field(default_factory=lambda: [Session()])

    def session(self, label: str) -> Session | None:
        """Return the session of a version, `v2`, or of the newest one."""
        if not label:
            return self.sessions[-1]
        number = int(label[1:]) if re.fullmatch(r"v[1-9]\d*", label) else 0  # a bare number is not found
        return self.sessions[number - 1] if 0 < number <= len(self.sessions) else None


@dataclass
class Dataset:
    """A dataset on Kaggle."""

    is_private: bool = True
    files: Sequence[str] = ("secrets.json",)
    states: list[str] = field(default_factory=lambda: ["READY"])
    """The states of its newest version: each is returned once, the last one always."""


@dataclass(frozen=True)
class Fault:
    """How a request fails: with an HTTP status, or 0 for a closed connection."""

    status: int = 0
    processed: bool = False
    """Whether what is asked is done all the same: the answer is lost."""


THROTTLED = Fault(200)
"""A page in place of JSON: `Expecting value: line 1 column 1 (char 0)`."""
LOST = Fault(502, processed=True)


def _refuse(status: int, message: str) -> Answer:
    return json_answer({"code": status, "message": message}, status)


class KaggleEmulator(LoopbackServer[Fault]):
    """A service with one user. A context manager: it serves while entered, and kills its sessions at the end."""

    requests: list[str]
    """The API method of every request."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.pushes: list[dict[str, Any]] = []
        """The content of each accepted push."""
        self.kernels: dict[str, Kernel] = {}
        self.datasets: dict[str, Dataset] = {}
        self.next_run: Sequence[Act] = (Act("QUEUED"), Act("RUNNING"), Act("COMPLETE"))
        """The acts of a pushed version."""
        self.session_of: Callable[[dict[str, Any]], Session] = lambda pushed: Session(
            *self.next_run, gpu=pushed["enableGpu"]
        )
        """Makes the session of an accepted push from its content."""
        self.push_error = ""
        """The reason for refusing every push, which Kaggle answers with status 200; empty to accept pushes."""
        self.unusable: Sequence[str] = ()
        """The datasets that Kaggle does not attach to a pushed kernel."""
        self.slots = 2
        """GPU sessions at a time."""
        self.session_hours = 12.0
        """The time limit of a session."""
        self.quota: tuple[float, float] | None = (8.5, 30.0)
        """GPU hours used and allowed; None if the account has no quota."""
        self.hours = 0.0
        """The emulator's clock; the quota is renewed at each multiple of `WEEK`."""
        self.stream_cuts = 0
        """The number of next log streams that end in the middle of the log."""
        self.keeps_log = True
        """Whether the log is available after the run."""
        self.changed = threading.Condition(self._lock)

    def __exit__(self, *given: object) -> None:
        with self.changed:
            for kernel in self.kernels.values():
                _end(kernel, "the service ends")
        super().__exit__(*given)

    def environment(self, home: Path, **account: str) -> dict[str, str]:
        """Return an environment in which the client uses this service, with this account and no other."""
        foreign = re.compile(r"KAGGLE|HTTPS?_PROXY|NO_PROXY|ALL_PROXY|XDG_CONFIG_HOME", re.IGNORECASE)
        kept = {name: value for name, value in os.environ.items() if not foreign.match(name)}
        given = account or {"KAGGLE_USERNAME": USER, "KAGGLE_KEY": KEY}
        return kept | {"HOME": str(home), "KAGGLE_API_ENVIRONMENT": "LOCALHOST", "http_proxy": self.url} | given

    def active(self) -> list[Session]:
        """Return the GPU sessions that are queued or running, of all kernels and versions."""
        sessions = (session for kernel in self.kernels.values() for session in kernel.sessions)
        return [session for session in sessions if session and session.gpu and not session.is_over]

    def advance(self, hours: float) -> None:
        """Pass time: count it, kill the sessions at their limit, renew the quota."""
        with self.changed:
            for session in self.active():
                if session.state == "RUNNING":
                    ran = min(hours, self.session_hours - session.hours)
                    session.hours += ran
                    self._use(ran)
                    if session.hours >= self.session_hours:
                        session.end("ERROR", "Your notebook exceeded its time limit")
            weeks, self.hours = self.hours // WEEK, self.hours + hours
            if self.quota and self.hours // WEEK > weeks:
                self.quota = (0.0, self.quota[1])
            self.changed.notify_all()

    def _use(self, hours: float) -> None:
        if self.quota:
            self.quota = (max(0.0, self.quota[0] + hours), self.quota[1])

    # ── answers ────────────────────────────────────────────────────────────────────────────────────────────────────

    def answer(self, name: str, asked: dict[str, Any]) -> Answer:
        """Return the answer to a request with a valid key."""
        with self.changed:
            if name == "SaveKernel":
                return self._save(asked)
            if name == "GetAcceleratorQuotaStatistics":
                return json_answer(self._quota())
            if "Kernel" in name:
                return self._about_kernel(name, f"{asked['userName']}/{asked['kernelSlug']}", asked)
            return self._about_dataset(name, f"{asked['ownerSlug']}/{asked['datasetSlug']}")

    def _about_dataset(self, name: str, ref: str) -> Answer:
        dataset = self.datasets.get(ref)
        if dataset is None:
            return _refuse(403, "Permission 'datasets.get' was denied")
        if name == "GetDatasetMetadata":
            owner, _, slug = ref.partition("/")
            return json_answer({"info": {"datasetSlug": slug, "ownerUser": owner, "isPrivate": dataset.is_private}})
        if name == "GetDatasetStatus":
            return json_answer({"status": dataset.states.pop(0) if len(dataset.states) > 1 else dataset.states[0]})
        if name == "ListDatasetFiles":
            return json_answer({"datasetFiles": [{"name": file, "totalBytes": 900} for file in dataset.files]})
        return _refuse(404, "this emulator knows nothing of it")

    def _save(self, asked: dict[str, Any]) -> Answer:
        owner, _, slug = asked["slug"].partition("/")
        title = asked["newTitle"]
        if not 5 <= len(title) <= 50:
            return _refuse(500, "An internal server error occurred")
        if f"{owner}/{slug}" not in self.kernels:  # a new one is called after its title
            slug = slugify(title)
            if f"{owner}/{slug}" in self.kernels:
                return _refuse(409, "A notebook with this title exists")
        if error := self.push_error or (asked["enableGpu"] and self._no_gpu()):
            return json_answer({"error": error})
        session = self.session_of(asked)
        kernel = self.kernels.setdefault(f"{owner}/{slug}", Kernel(sessions=[]))
        kernel.is_private = asked["isPrivate"]
        kernel.sessions.append(session)
        self.pushes.append(asked)
        lost = [source for source in asked["datasetDataSources"] if source in self.unusable]
        return json_answer(
            {
                "ref": f"/code/{owner}/{slug}",
                "url": f"https://www.kaggle.com/code/{owner}/{slug}",
                "versionNumber": len(kernel.sessions),
                "invalidDatasetSources": lost,
            }
        )

    def _no_gpu(self) -> str:
        """Return why a push gets no GPU session; empty if it gets one."""
        if len(self.active()) >= self.slots:
            return f"Maximum batch GPU session count of {self.slots} reached."
        if self.quota and self.quota[0] >= self.quota[1]:
            return f"Maximum weekly GPU quota of {self.quota[1]:.2f} hours reached."
        return ""

    def _about_kernel(self, name: str, ref: str, asked: Mapping[str, Any]) -> Answer:
        kernel = self.kernels.get(ref)
        if kernel is None:  # Kaggle answers as for another user's kernel
            return _refuse(403, "Permission 'kernels.get' was denied")
        if name == "GetKernel":
            slug = ref.partition("/")[2]
            about = {"slug": slug, "language": "python", "kernelType": "notebook"}
            version = {"isPrivate": kernel.is_private, "currentVersionNumber": len(kernel.sessions)}
            return json_answer(
                {"metadata": {**about, **version, "ref": ref, "title": slug}, "blob": {**about, "source": "{}"}}
            )
        if name == "DeleteKernel":
            for active in self.active():
                if active in kernel.sessions:
                    self._use(-active.hours)  # read: the hours used went down
            _end(self.kernels.pop(ref), "deleted")
            self.changed.notify_all()
            return json_answer({})
        session = kernel.session(asked.get("versionLabel") or "")
        return _refuse(404, "Not found") if session is None else self._about_session(name, session)

    def _about_session(self, name: str, session: Session) -> Answer:
        if name == "GetKernelSessionStatus":
            session.look()
            self.changed.notify_all()
            failure = {"failureMessage": session.reason} if session.reason else {}
            return json_answer({"status": session.state, **failure})
        if name == "ListKernelSessionOutput":
            return json_answer({"files": [], "log": json.dumps(session.events()) if self.keeps_log else ""})
        return _refuse(404, "this emulator knows nothing of it")

    def _quota(self) -> dict[str, Any]:
        if self.quota is None:
            return {}
        used, allowed = (f"{hours * 3600:.0f}s" for hours in self.quota)
        renewed = START + timedelta(hours=(self.hours // WEEK + 1) * WEEK)
        return {
            "quotaRefreshTime": f"{renewed:%Y-%m-%dT%H:%M:%SZ}",
            "gpuQuota": {"timeUsed": used, "totalTimeAllowed": allowed},
            "tpuQuota": {"timeUsed": "0s", "totalTimeAllowed": "72000s"},
        }


def use_account(service: KaggleEmulator, home: Path, patch: pytest.MonkeyPatch, **account: str) -> None:
    """Make clients of this process use only this account."""
    given = service.environment(home, **account)
    for name in set(os.environ) - set(given):
        patch.delenv(name)
    for name in set(given) - {"PYTEST_CURRENT_TEST"}:
        patch.setenv(name, given[name])


def _end(kernel: Kernel, reason: str) -> None:
    for session in kernel.sessions:
        if session and not session.is_over:
            session.end("CANCEL_ACKNOWLEDGED", reason)


class _Handler(LoopbackHandler):
    """One connection of a client."""

    service: KaggleEmulator

    def _handle(self) -> None:
        body = self.read_body()
        address = urlsplit(self.path)  # a proxy receives the whole address
        stream = re.fullmatch(r"/api/v1/kernels/logs/stream/([^/]+/[^/]+)", address.path)
        name = "LogStream" if stream else address.path.rpartition("/")[2]
        self.service.requests.append(name)
        fault = self.service._take_fault(name)
        if fault and fault.processed and self._may_ask():
            self.service.answer(name, json.loads(body))
        if fault and not fault.status:
            self.close_connection = True
        elif fault:
            self.send(html_answer(200) if fault == THROTTLED else _refuse(fault.status, "the service has trouble"))
        elif name == "IntrospectToken":
            known = json.loads(body).get("token") == TOKEN
            self.send(json_answer({"active": True, "username": USER} if known else {"active": False}))
        elif not self._may_ask():
            self.send(_refuse(401, "Unauthenticated"))
        elif stream:
            kernel = self.service.kernels.get(stream[1])
            (label,) = parse_qs(address.query).get("versionLabel", [""])
            self._stream(kernel.session(label) if kernel else None)
        else:
            self.send(self.service.answer(name, json.loads(body)))

    do_GET = do_POST = _handle  # noqa: N815  the names that http.server looks for

    def send(self, answer: Answer, *, cut: bool = False) -> None:
        """Send a response, which names a newer version of the client: that makes it print a warning."""
        super().send(replace(answer, headers={**answer.headers, "X-Kaggle-APIVersion": "99.0"}), cut=cut)

    def _may_ask(self) -> bool:
        basic = base64.b64encode(f"{USER}:{KEY}".encode()).decode()
        return self.headers.get("Authorization") in {f"Basic {basic}", f"Bearer {TOKEN}"}

    def _stream(self, session: Session | None) -> None:
        """Send a log while it grows, or the stored log of a run that is over."""
        if session is None or session.state == "QUEUED":
            self.send(_refuse(404, "no session has a log yet"))
        elif session.is_over:
            self.send(json_answer(session.events() if self.service.keeps_log else []))
        else:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.flush()  # the log may have no event yet
            self._send_events(session)
            self.close_connection = True

    def _send_events(self, session: Session) -> None:
        sent = 0
        while not self.service._closing.is_set():
            with self.service.changed:
                events, is_over = session.events(), session.is_over
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
