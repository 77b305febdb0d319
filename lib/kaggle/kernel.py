"""Push a rendered notebook to Kaggle (a "kernel" there) and follow its run to the end, with the kaggle client.

Guarantees: no push overwrites a public kernel or attaches a public secrets dataset. Success of a push or a run is read
from the client's output, because the client exits with 0 even after failures. A key is never shown. Cannot: detect the
collaborators who can see a private kernel, or distinguish two runs if the kernel is pushed again while it is followed.

The client runs as a subprocess: inside this process it could not be given a time limit, and it could exit the process.
The client itself decides which key it uses (`KAGGLE_API_TOKEN`, `KAGGLE_USERNAME` and `KAGGLE_KEY`, `kaggle.json`, …).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from lib.errors import KaggleError
from lib.kaggle.notebook import account_file
from lib.process import MINUTE, CommandFailed, CommandTimedOut, Completed, FollowedCommand, run_command
from lib.remotes.credentials import Credentials

CLIENT = (sys.executable, "-P", "-m", "kaggle", "--no-warn")
ENVIRONMENT = {"VERBOSE": "", "VERBOSE_OUTPUT": "", "PYTHONIOENCODING": "utf-8"}
"""The client's environment; danger: with `VERBOSE` set, the client prints every request, including the key."""
SETTINGS = "https://www.kaggle.com/settings/api"
PATIENCE = 30 * MINUTE  # without a reply of Kaggle, after which a run is no longer followed
STILL = 10 * MINUTE  # without a new line, after which the log's connection is opened again
DRAIN = 10.0  # seconds to wait for remaining log lines when a run has ended
TAIL = 50  # last lines to show of the log if the run had already ended
ENDS = {"complete": "complete", "error": "error", "cancelacknowledged": "cancelled"}
"""Final states of a run: the client's word and ours."""


# ── the client ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _environment() -> dict[str, str]:
    """Return what is added to the client's environment."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        text = account_file().read_text(encoding="utf-8")
        # the client takes a file that begins with a byte order mark for none
        if text.startswith("\ufeff") and not {"KAGGLE_API_TOKEN", "KAGGLE_KEY"} & set(os.environ):
            account = json.loads(text[1:])
            return ENVIRONMENT | {"KAGGLE_USERNAME": account["username"], "KAGGLE_KEY": account["key"]}
    return ENVIRONMENT


def _ask(*words: str | Path, timeout: float = MINUTE) -> Completed:
    """Run a command of the kaggle client and return its output.

    Raises `KaggleError` without a client or a valid key, else the errors of `run_command`.
    """
    if importlib.util.find_spec("kaggle") is None:
        raise KaggleError(
            "the kaggle client is not installed.",
            state="no request was sent to Kaggle.",
            remedy="run this with `uv run`, which installs it, or `pip install kaggle`.",
        )
    try:
        return run_command([*CLIENT, *words], env=_environment(), timeout=timeout, redact=Credentials().redact)
    except CommandFailed as failed:
        # the client prints this both without a key and for a key that Kaggle rejects
        if "Authentication required" in failed.answer.output:
            raise KaggleError(
                "the kaggle client has no key, or Kaggle rejects the one it has.",
                state="nothing was done on Kaggle.",
                remedy=f"make a token at {SETTINGS} and set KAGGLE_API_TOKEN to it, or `uv run kaggle auth login`.",
            ) from None
        errors = _without_frames(failed.answer.errors)
        if "Invalid header value" in errors or "codec can't encode" in errors:
            raise KaggleError(
                "the kaggle client's key holds a line break, or a character that no key has.",
                state="no request was sent to Kaggle.",
                remedy="write it alone and in one line (KAGGLE_API_TOKEN, ~/.kaggle/access_token or kaggle.json).",
            ) from None
        raise CommandFailed(failed.command, replace(failed.answer, errors=errors)) from None


def _without_frames(errors: str) -> str:
    """Return an error output in which a Python traceback is its last part, the error itself."""
    before, found, trace = errors.rpartition("Traceback (most recent call last):\n")
    return "".join(line for line in trace.splitlines(True) if not line.startswith(" ")) if found else before + trace


def _message(failed: CommandFailed | CommandTimedOut) -> str:
    """Return the client's error message without the command line."""
    if isinstance(failed, CommandTimedOut):
        return failed.what
    return (failed.answer.errors.strip() or failed.answer.output.strip() or failed.what)[-1000:]


def _is_absent(failed: CommandFailed) -> bool:
    """Return whether the object is missing or not accessible: Kaggle's errors do not distinguish the two."""
    return re.search(r"not found|denied|have access|\b40[34]\b", failed.answer.errors, re.IGNORECASE) is not None


# ── before a push ───────────────────────────────────────────────────────────────────────────────────────────────────


def client_user() -> str:
    """Return the user name that the client's key belongs to. Raises `KaggleError` if it is unknown."""
    found = re.search(r"^- username: (?!None$)(\S+)$", _ask("config", "view").output, re.MULTILINE)
    if found is None:
        raise KaggleError(
            "the kaggle client has a key, but does not report whose.",
            state="nothing was done on Kaggle.",
            remedy="set KAGGLE_USERNAME.",
        )
    return found[1]


def require_private(kernel: str, dataset: str) -> None:
    """Raise `KaggleError` for a public kernel, or a secrets dataset that is public, missing or has no secrets.json."""
    if not re.fullmatch(r"[^/\s]+/[^/\s]+", dataset):
        raise KaggleError(
            f"--secrets-dataset {dataset!r} is not the name of a Kaggle dataset.",
            remedy="give it as OWNER/SLUG, as in its address.",
        )
    # a missing kernel is created by the push
    if _is_private(kernel, "kernels", "pull", kernel, "--metadata") is False:
        raise KaggleError(
            f"the kernel {kernel} exists and is public: its log and output would be public too.",
            remedy=f"make it private (https://www.kaggle.com/code/{kernel}, Share), or delete it there.",
        )
    is_private = _is_private(f"the dataset {dataset}", "datasets", "metadata", dataset)
    if is_private is None:
        raise KaggleError(
            f"there is no dataset {dataset} on Kaggle that this key may read.",
            remedy="make a private Kaggle dataset of this name with secrets.json in it (docs/setup.md), "
            "or name yours with --secrets-dataset OWNER/SLUG.",
        )
    if not is_private:
        raise KaggleError(
            f"the dataset {dataset} is public: everybody can read the credentials in it.",
            remedy=f"make it private (https://www.kaggle.com/datasets/{dataset}/settings) and replace every "
            "credential in it with a new one.",
        )
    listing = ("datasets", "files", dataset, "--format", "json(name)", "--page-size", "200")
    files = _reply(f"the files of the dataset {dataset}", *listing)
    if files is None or '"secrets.json"' not in files.output:
        raise KaggleError(
            f"the dataset {dataset} has no file secrets.json.",
            remedy="add it (docs/setup.md), or name another dataset with --secrets-dataset OWNER/SLUG.",
        )


def _is_private(what: str, *words: str) -> bool | None:
    """Return whether an object is private, from the metadata file that a client command writes; None if it is missing.

    Raises `KaggleError` if Kaggle does not report it.
    """
    with tempfile.TemporaryDirectory(prefix="kaggle-training-") as folder:
        answer = _reply(f"whether {what} is private", *words, "-p", folder)
        if answer is None:
            return None
        try:
            (file,) = Path(folder).glob("*-metadata.json")
            found = json.loads(file.read_text(encoding="utf-8"))
            found = found.get("info", found)  # of a dataset
            return found.get("isPrivate", found.get("is_private")) is True
        except (OSError, ValueError, AttributeError):
            raise KaggleError(
                f"the kaggle client wrote no metadata of {what}: {answer.output.strip() or answer.errors.strip()}",
                remedy="try again, or update the client.",
            ) from None


def _reply(what: str, *words: str) -> Completed | None:
    """Return the client's answer; None if the object is missing. Raises `KaggleError` if Kaggle does not answer."""
    try:
        return _ask(*words)
    except CommandFailed as failed:
        if _is_absent(failed):
            return None
        raise KaggleError(f"Kaggle does not report {what}: {_message(failed)}", remedy="try again later.") from None


def gpu_quota() -> str:
    """Return the remaining GPU hours as text; empty if Kaggle does not report them."""
    try:
        output = _ask("quota", "--format", "json").output
        (gpu,) = [row for row in json.loads(output[output.index("[") :]) if row["resource"] == "GPU"]
        return f"{gpu['remaining']} of {gpu['total']} left until {gpu['refreshAt'] or 'it is renewed'}"
    except (CommandFailed, CommandTimedOut, ValueError, KeyError, TypeError):
        return ""


# ── the push ────────────────────────────────────────────────────────────────────────────────────────────────────────


def push_kernel(folder: Path) -> str:
    """Push the rendered notebook in a folder, which starts its run, and return a report with version and address.

    Raises `KaggleError` if the push is refused or not confirmed, or if the run starts without the secrets dataset.
    """
    kernel: str = json.loads((folder / "kernel-metadata.json").read_text(encoding="utf-8"))["id"]
    try:
        answer = _ask("kernels", "push", "-p", folder, timeout=5 * MINUTE)
    except (CommandFailed, CommandTimedOut) as failed:
        raise KaggleError(
            f"Kaggle did not confirm the push of {kernel}: {_message(failed)}",
            state="it is not known whether it was pushed.",
            remedy=f"look at https://www.kaggle.com/code/{kernel} before you push again.",
        ) from None
    lines = [line for line in (answer.output + answer.errors).splitlines() if line.strip()]
    done = re.search(r"Kernel version (?:(\S+) )?successfully pushed\..*?(https?://\S+)", answer.output)
    if done is None:
        raise KaggleError(
            f"Kaggle refused the push of {kernel}: {' '.join(lines) or 'without a message'}",
            remedy="correct what it reports; a first push may need a verified phone number (Kaggle, Settings).",
        )
    address = done[2]
    if lost := [line for line in lines if "not valid dataset sources" in line]:
        raise KaggleError(
            f"Kaggle did not attach the secrets dataset: {' '.join(lost)}",
            state=f"the kernel was pushed without it and runs: {address}",
            remedy="stop it there, and push again when the dataset is ready and shared with the kernel's owner.",
        )
    notes = [line for line in lines if done[0] not in line]  # mostly warnings
    if address.rstrip("/").rpartition("/")[2] != kernel.rpartition("/")[2]:
        notes.append(f"Kaggle runs it under another name than {kernel}: look for it there.")
    report = [f"Pushed:   version {done[1] or '?'} of {kernel}", f"Address:  {address}"]
    return "\n".join([*report, *(f"Note:     {note}" for note in notes)])


# ── its run ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Log:
    """A kernel's log that yields each line once, although the client restarts at the first line on each connection."""

    def __init__(self, kernel: str) -> None:
        self.kernel = kernel
        self._client: FollowedCommand | None = None
        self._active_at = 0.0
        self._at, self._shown = 0, 0

    def new_lines(self, wait: float) -> Iterator[str]:
        """Yield the new lines of the next `wait` seconds; ends earlier if the client considers the log complete."""
        # a connection lost while the machine was asleep would stay silent forever
        if self._client is None or self._client.has_ended or time.monotonic() - self._active_at > STILL:
            self.close()
            command = [*CLIENT, "kernels", "logs", "--follow", self.kernel]
            self._client = FollowedCommand(command, env=_environment(), redact=Credentials().redact)
            self._active_at, self._at = time.monotonic(), 0
        for line in self._client.lines(wait):
            self._active_at = time.monotonic()
            yield from self._if_new(line)

    def rest(self) -> Iterator[str]:
        """Yield the lines of an ended run's log that were not yielded before."""
        try:
            text = _ask("kernels", "logs", self.kernel, timeout=5 * MINUTE).output
        except (CommandFailed, CommandTimedOut) as failed:
            yield f"Kaggle does not return the log: {_message(failed)}"
            return
        self._at = 0
        for line in _lines_of_log(text):
            yield from self._if_new(line)

    def _if_new(self, line: str) -> Iterator[str]:
        self._at += 1
        if self._at > self._shown:
            self._shown = self._at
            yield line.rpartition("\r")[2]  # the last state of a self-overwriting progress bar

    def close(self) -> None:
        """Stop the client's subprocess."""
        if self._client is not None:
            self._client.close()


def _lines_of_log(text: str) -> list[str]:
    """Return the lines of a log in Kaggle's stored form: the streamed events as JSON."""
    try:
        events = [str(event["data"]) for event in json.loads(text) if event.get("data") is not None]
    except (ValueError, KeyError, TypeError, AttributeError):
        return text.strip().splitlines()
    return "".join(data if data.endswith("\n") else f"{data}\n" for data in events).split("\n")[:-1]


def watch_kernel(kernel: str, *, every: float, say: Callable[[str], None]) -> str | None:
    """Follow a kernel's newest run to its end and return the branch it published; None if its log names no branch.

    Polls the state every `every` seconds and passes new states and log lines to `say`. The returned branch is the last
    one in the log. Raises `KaggleError` if the run fails or is cancelled, if the kernel does not exist, and if Kaggle
    does not answer for `PATIENCE` seconds.
    """
    begun, was_running, shown, state, reason = time.monotonic(), False, "", "", ""
    lines: list[str] = []

    def say_state(state: str, reason: str) -> None:
        passed = timedelta(seconds=int(time.monotonic() - begun))
        say(f"[{passed!s:0>8}] {ENDS.get(state, state)}{reason and f': {reason}'}")

    with contextlib.closing(_Log(kernel)) as log:
        for state, reason in _states(kernel, every):
            if state in ENDS:
                break
            if state != shown:
                say_state(state, reason)
                shown = state
            if state != "queued":
                was_running = True
                for line in log.new_lines(every):
                    say(line)
                    lines.append(line)
        # the stream may end before the stored log is complete, and the reverse
        last = [*(log.new_lines(DRAIN) if was_running else ()), *log.rest()]
    if not was_running and len(last) > TAIL:
        say(f"The last {TAIL} of {len(last)} lines of its log:")
    for line in last if was_running else last[-TAIL:]:
        say(line)
    say_state(state, reason)
    if state != "complete":
        raise KaggleError(
            f"the run of {kernel} ended as: {ENDS[state]}{f' ({reason})' if reason else ''}.",
            state="its log is above; `python -m lib status` shows the checkpoints that it uploaded.",
            remedy="correct what the log reports and push again: the run resumes from its newest checkpoint.",
        )
    branches = re.findall(r"\bkaggle-train-[\w.-]+-\d{8}-\d{6}\b", "\n".join(lines + last))
    return branches[-1] if branches else None


def _states(kernel: str, every: float) -> Iterator[tuple[str, str]]:
    """Yield the state of a kernel's newest run and its reason, one poll every `every` seconds, without end."""
    answered_at, has_answered = time.monotonic(), False
    while True:
        now = time.monotonic()
        try:
            state, reason = _ask_state(kernel)
            answered_at, has_answered = now, True
        except (CommandFailed, CommandTimedOut) as failed:
            if not has_answered and isinstance(failed, CommandFailed) and _is_absent(failed):
                raise KaggleError(
                    f"there is no kernel {kernel} on Kaggle that this key may read.",
                    state="nothing is followed.",
                    remedy="push it first (render.py MODULE --push), or name its owner with --kaggle-user.",
                ) from None
            if now - answered_at > PATIENCE:
                raise KaggleError(
                    f"Kaggle does not answer: {_message(failed)}",
                    state="the run continues, but is no longer followed.",
                    remedy=f"follow it again later, or look at https://www.kaggle.com/code/{kernel}.",
                ) from None
            state, reason = "no answer", f"{_message(failed).splitlines()[0]}; retrying"
        yield state, reason
        time.sleep(max(0.0, every - (time.monotonic() - now)))


def _ask_state(kernel: str) -> tuple[str, str]:
    output = _ask("kernels", "status", kernel).output
    found = re.search(r'has status "(?:\w+\.)?(\w+)"', output)
    if found is None:
        raise KaggleError(
            f"the kaggle client reports no status of {kernel}: {output.strip()}",
            state="the run continues, but is no longer followed.",
            remedy=f"look at https://www.kaggle.com/code/{kernel}, and update the client.",
        )
    reason = re.search(r'^Failure message: "(.*)"$', output, re.MULTILINE | re.DOTALL)
    return found[1].replace("_", "").lower(), reason[1].strip() if reason else ""
