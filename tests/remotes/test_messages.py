"""Messages reach the addresses of NOTIFY_URLS, cost no run, and show no address."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT
from loopback import LoopbackHandler, LoopbackServer, json_answer

from lib.errors import CredentialsError, DatasetError
from lib.experiment.load import load_experiment
from lib.remotes import messages
from lib.remotes.credentials import Credentials, load_credentials, make_credentials
from lib.remotes.messages import check_addresses, send
from lib.results.messages import tell_end, tell_error
from lib.session import Session

KEY = "canary-token-of-the-address"


class Receiver(LoopbackServer[Any]):
    """A service that takes JSON messages, as Apprise's `json://` sends them."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.status = 200
        self.silent = threading.Event()
        """Set: no request is answered."""

    @property
    def address(self) -> str:
        """The address of this service with a key in it; Apprise waits for it for a second."""
        return f"{self.url.replace('http', 'json')}/{KEY}?rto=1&cto=1"


class _Handler(LoopbackHandler):
    service: Receiver

    def do_POST(self) -> None:  # noqa: N802  the name that http.server looks for
        """Keep the message."""
        self.service.requests.append(json.loads(self.read_body()))
        if self.service.silent.is_set():
            self.service._closing.wait(30)
            self.hang_up()
        else:
            self.send(json_answer({}, self.service.status))


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Return a service that takes messages."""
    with Receiver() as receiver:
        yield receiver


def session_of(folder: Path, *addresses: str) -> Session:
    """Return the session of a run that has curves."""
    experiment = load_experiment(ROOT / "experiments/000_det_sandbox.yaml")
    session = Session(folder, folder, folder, experiment, Credentials(notify_urls=addresses, source="the test"))
    (session.artifacts / "train").mkdir(parents=True)
    (session.artifacts / "train/results.png").write_bytes(b"\x89PNG curves")
    return session


def results(state: str, reason: str = "") -> Any:
    """Return what a message says of a run's results."""
    rows = [("test", "box", "24", "0.5", "0.6", "0.700", "0.400")]
    return SimpleNamespace(
        trained=SimpleNamespace(state=state, reason=reason),
        evaluated=SimpleNamespace(metrics=SimpleNamespace(rows=lambda: rows)),
        tracking=SimpleNamespace(address="https://wandb.ai/a/b"),
    )


@pytest.mark.parametrize(
    ("state", "reason", "title"), [("finished", "", "is finished"), ("interrupted", "its time is over", "interrupted")]
)
def test_the_end_of_a_run_is_told(receiver: Receiver, tmp_path: Path, state: str, reason: str, title: str) -> None:
    """With its reason, metrics, branch, W&B address and curves."""
    session = session_of(tmp_path, receiver.address)
    tell_end(session, results(state, reason), "kaggle-train-x")
    (message,) = receiver.requests
    assert message["title"] == f"{session.name} {title}"
    for words in (reason, "test, box: mAP50 0.700, mAP50-95 0.400", "Branch: kaggle-train-x", "https://wandb.ai/a/b"):
        assert words in message["message"]
    assert [attached["filename"] for attached in message["attachments"]] == ["results.png"]


def test_an_error_is_told_with_its_remedy_and_without_keys(receiver: Receiver, tmp_path: Path) -> None:
    """An interrupt by the user is not."""
    session = session_of(tmp_path, receiver.address)
    tell_error(session, DatasetError("broken", remedy="mend it."))
    tell_error(session, ValueError(f"of {KEY}"))
    tell_error(session, KeyboardInterrupt())
    texts = [message["message"] for message in receiver.requests]
    assert texts == ["broken\nWhat to do: mend it.", "ValueError: of ***"]


def test_a_service_that_refuses_costs_only_its_own_message(
    receiver: Receiver, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The warning names its position, never the address."""
    receiver.status = 403
    with Receiver() as other:
        tell_end(session_of(tmp_path, receiver.address, other.address), results("finished"), "kaggle-train-x")
        assert len(other.requests) == 1
    shown = capsys.readouterr()
    assert "Warning: NOTIFY_URLS, number 1: JSON: " in shown.out
    assert "number 2" not in shown.out
    assert KEY not in shown.out + shown.err


def test_a_service_that_never_answers_ends_no_run(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the services has a limit, and the thread that waits on keeps no process alive."""
    receiver.silent.set()
    monkeypatch.setattr(messages, "LIMIT", 0.1)
    account = Credentials(notify_urls=(receiver.address, receiver.address))
    assert "not every message was sent" in send(account, "title", "text")[-1]
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "messages"]
    assert thread.daemon
    thread.join(30)


def test_without_addresses_nothing_is_sent(tmp_path: Path) -> None:
    """And Apprise is not even imported."""
    script = (
        "import sys\nfrom lib.remotes.credentials import Credentials\nfrom lib.remotes.messages import send\n"
        "assert send(Credentials(), 'a', 'b') == []\nassert 'apprise' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_an_address_that_apprise_cannot_read_is_named_by_position(tmp_path: Path) -> None:
    """Before the training; the error shows no address."""
    account = make_credentials({"NOTIFY_URLS": ["ntfy://topic-of-mine", f"nonsense://{KEY}", f"tgram://{KEY}"]}, "file")
    with pytest.raises(CredentialsError) as caught:
        check_addresses(account)
    assert "NOTIFY_URLS has addresses that Apprise cannot read: number 2, 3" in caught.value.what
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        ["mailto://me:pass@example.com?to=a,b", "ntfy://topic"],
        "mailto://me:pass@example.com?to=a,b ntfy://topic",
        " mailto://me:pass@example.com?to=a,b,ntfy://topic\n",
    ],
)
def test_addresses_are_a_list_or_a_text(given: object) -> None:
    """In a text, spaces, lines or commas lie between them."""
    read = make_credentials({"NOTIFY_URLS": given}, "file").notify_urls
    assert read == ("mailto://me:pass@example.com?to=a,b", "ntfy://topic")


@pytest.mark.parametrize("given", [3, {"a": "ntfy://topic"}, ["ntfy://topic", 3], "topic", ["topic"]])
def test_what_is_no_list_of_addresses_is_rejected(given: object) -> None:
    """The error names the key."""
    with pytest.raises(CredentialsError, match="NOTIFY_URLS is not a list of addresses"):
        make_credentials({"NOTIFY_URLS": given}, "file")


def test_addresses_come_from_the_environment_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As other accounts do, beside a file without them."""
    monkeypatch.setenv("NOTIFY_URLS", "ntfy://one ntfy://two")
    (tmp_path / "secrets.json").write_text('{"WANDB_API_KEY": "k"}')
    found = load_credentials(str(tmp_path / "secrets.json"))
    assert found.notify_urls == ("ntfy://one", "ntfy://two")
    assert "NOTIFY_URLS" in repr(found)


def test_no_part_of_an_address_is_shown() -> None:
    """Neither whole, nor the keys that services put at any place of it; hosts stay readable."""
    urls = (
        "tgram://123456789:AbCdEf-token/42",
        "mailto://someone:pa%24sword@example.com",
        "discord://4130700/hook-secret",
    )
    redact = Credentials(notify_urls=urls).redact
    for secret in (*urls, "bot123456789:AbCdEf-token", "pa$sword", "hook-secret"):
        assert "***" in redact(f"error of {secret}."), secret
        assert not [part for part in ("AbCdEf", "sword", "hook-s") if part in redact(f"error of {secret}.")]
    assert redact("example.com refuses") == "example.com refuses"


def test_the_addresses_are_tried_on_request(receiver: Receiver, tmp_path: Path) -> None:
    """`credentials --test-notify` sends one message, and fails if a service refuses it."""
    file = tmp_path / "secrets.json"
    file.write_text(json.dumps({"NOTIFY_URLS": receiver.address}))
    command = [sys.executable, "-m", "lib", "credentials", str(file), "--test-notify"]
    good = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=dict(os.environ))
    receiver.status = 500
    bad = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=dict(os.environ))
    assert (good.returncode, good.stdout) == (0, "Sent to: JSON.\n"), good.stderr
    assert bad.returncode == 1
    assert "NOTIFY_URLS, number 1: JSON" in bad.stderr
    assert KEY not in bad.stdout + bad.stderr
