"""Follow one version of a kernel on Kaggle to the end of its run.

Guarantees: a version is followed alone, whatever is pushed meanwhile; success of a run is read from Kaggle's state.
Cannot: show the log of a version that was deleted.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

from lib.errors import KaggleError
from lib.kaggle.client import CLIENT, ask, client_environment, message, need, question
from lib.process import MINUTE, CommandFailed, CommandTimedOut, FollowedCommand
from lib.remotes.credentials import Credentials

PATIENCE = 30 * MINUTE  # without a reply of Kaggle, after which a run is no longer followed
STILL = 10 * MINUTE  # without a new line, after which the log's connection is opened again
DRAIN = 10.0  # seconds to wait for remaining log lines when a run has ended
TAIL = 50  # last lines to show of the log if the run had already ended
UNFOLLOWED = "nothing is followed."
UNKNOWN = ("not found", "retrying")
ENDS = {"complete": "complete", "error": "error", "cancelacknowledged": "cancelled"}
"""Final states of a run: the client's word and ours."""


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
            self._client = FollowedCommand(command, env=client_environment(), redact=Credentials().redact)
            self._active_at, self._at = time.monotonic(), 0
        for line in self._client.lines(wait):
            self._active_at = time.monotonic()
            yield from self._if_new(line)

    def rest(self) -> Iterator[str]:
        """Yield the lines of an ended run's log that were not yielded before."""
        try:
            text = ask("kernels", "logs", self.kernel, timeout=5 * MINUTE).output
        except (CommandFailed, CommandTimedOut) as failed:
            yield f"Kaggle does not return the log: {message(failed)}"
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
    """Follow one version of a kernel to the end of its run and return the branch it published.

    `kernel` is OWNER/SLUG, which means the version that is the newest now, or OWNER/SLUG/VERSION. Polls the state every
    `every` seconds and passes new states and log lines to `say`. The returned branch is the last one in the log, None
    if it names none. Raises `KaggleError` if the run fails or is cancelled, if the kernel or version does not exist or
    is deleted, and if Kaggle does not answer for `PATIENCE` seconds.
    """
    kernel, version, found = _find_version(kernel)
    name = f"{kernel}/{version}"
    say(f"Following version {version} of {kernel}: https://www.kaggle.com/code/{kernel}")
    begun, was_running, shown, state, reason = time.monotonic(), False, "", "", ""
    lines: list[str] = []

    def say_state(state: str, reason: str) -> None:
        passed = timedelta(seconds=int(time.monotonic() - begun))
        say(f"[{passed!s:0>8}] {ENDS.get(state, state)}{reason and f': {reason}'}")

    with contextlib.closing(_Log(name)) as log:
        for state, reason in _states(kernel, version, found, every, say):
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
            f"the run of {name} ended as: {ENDS[state]}{f' ({reason})' if reason else ''}.",
            state="its log is above; `python -m lib status` shows the checkpoints that it uploaded.",
            remedy="correct what the log reports and push again: the run resumes from its newest checkpoint.",
        )
    branches = re.findall(r"\bkaggle-train-[\w.-]+-\d{8}-\d{6}\b", "\n".join(lines + last))
    return branches[-1] if branches else None


def _find_version(name: str) -> tuple[str, int, dict[str, Any]]:
    """Return the kernel, the version that OWNER/SLUG or OWNER/SLUG/VERSION names, and its state.

    Raises `KaggleError`, also if Kaggle does not answer.
    """
    named = re.fullmatch(r"([^/\s]+/[^/\s]+?)(?:/v?([1-9]\d*))?/?", name)
    if named is None:
        raise KaggleError(
            f"{name!r} is not the name of a kernel.",
            state=UNFOLLOWED,
            remedy="give OWNER/SLUG or OWNER/SLUG/VERSION, as in its address, or an experiment's file.",
        )
    kernel, given = named.groups()
    found = need(f"the state of {kernel}", "kernel", kernel, given or "newest", state=UNFOLLOWED)
    if found is None:
        raise KaggleError(
            f"there is no kernel {kernel} on Kaggle that this key may read.",
            state=UNFOLLOWED,
            remedy="push it first (render.py MODULE --push), or name its owner with --kaggle-user.",
        )
    version = int(given or found["newest"])
    if version > found["newest"]:
        raise KaggleError(
            f"version {version} of {kernel} does not exist.",
            state=UNFOLLOWED,
            remedy=f"name another one; the newest is {kernel}/{found['newest']}.",
        )
    return kernel, version, found


def _states(
    kernel: str, version: int, found: dict[str, Any], every: float, say: Callable[[str], None]
) -> Iterator[tuple[str, str]]:
    """Yield the state of a version and its reason, first of the answer `found`, then every `every` seconds."""
    state, reason = found["states"].get(str(version), UNKNOWN)
    newest, missing = found["newest"], 0
    answered_at = now = time.monotonic()
    while True:
        yield state, reason
        time.sleep(max(0.0, every - (time.monotonic() - now)))
        now = time.monotonic()
        try:
            found = question("kernel", kernel, str(version)) or {"newest": 0, "states": {}}
        except (CommandFailed, CommandTimedOut) as failed:
            if now - answered_at > PATIENCE:
                raise KaggleError(
                    f"Kaggle does not answer: {message(failed)}",
                    state="the run continues, but is no longer followed.",
                    remedy=f"follow it again later, or look at https://www.kaggle.com/code/{kernel}.",
                ) from None
            state, reason = "no answer", f"{message(failed).splitlines()[0]}; retrying"
            continue
        answered_at = now
        state, reason = found["states"].get(str(version), UNKNOWN)
        missing = missing + 1 if (state, reason) == UNKNOWN else 0
        if missing > 1:  # the first may be an error of Kaggle's, or a version that was pushed just now
            raise KaggleError(
                f"Kaggle has no run of version {version} of {kernel}: the kernel was deleted, which ended its runs, or "
                "the version was saved without running it.",
                state="the log is gone; `python -m lib status` shows the checkpoints that a run uploaded.",
                remedy="push again: the run resumes from its newest checkpoint.",
            )
        if found["newest"] > newest:
            newest = found["newest"]
            say(f"Version {newest} was pushed meanwhile; this follows version {version}.")
