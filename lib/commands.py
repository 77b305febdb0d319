"""The only door to other programs (but for `lib/install.py`, which runs before this package's needs are there).

Every command has a time limit, dies with all its children when it is passed, asks nothing at a terminal, and what it
printed is redacted before anybody sees it. Cannot: undo what a command did before it was stopped.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.errors import CommandError

MINUTE = 60.0
SILENCE = 2 * MINUTE  # without a byte, before a connection is given up
LONG = 200  # characters of a word that an error shows


def limit_silence() -> None:
    """Give up connections of this process that say nothing for `SILENCE`: Google's client would wait for ever."""
    if socket.getdefaulttimeout() is None:
        socket.setdefaulttimeout(SILENCE)


@dataclass(frozen=True)
class Answer:
    """What a command gave: its exit status and, redacted, what it printed."""

    status: int
    output: str
    errors: str


class CommandFailed(CommandError):
    """A command ended with another status than 0."""

    def __init__(self, command: str, answer: Answer) -> None:
        self.answer = answer
        told = (answer.errors.strip() or answer.output.strip() or "it printed nothing")[-4000:]
        super().__init__(f"`{command}` failed with status {answer.status}:\n{told}")


class CommandTimedOut(CommandError):
    """A command was stopped because it took longer than it may."""

    def __init__(self, command: str, seconds: float) -> None:
        super().__init__(
            f"`{command}` gave no answer within {seconds:.0f} s and was stopped.",
            remedy="check the network and the host it talks to, then run the same again.",
        )


def run_command(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 5 * MINUTE,
    redact: Callable[[str], str] = str,
    text: str | None = None,
    check: bool = True,
) -> Answer:
    """Run a program and give what it printed.

    `env` is added to this process's environment, for this one command: the place for a credential. `text` is its
    standard input; without it there is none. Raises `CommandFailed` (with `check`), `CommandTimedOut`, and
    `CommandError` when the program cannot be started.
    """
    words = [str(word) for word in command]
    # redacted before they are shortened: part of a credential is one too
    shown = " ".join(word if len(word) < LONG else word[:LONG] + "…" for word in map(redact, words))
    try:
        process = subprocess.Popen(
            words,
            cwd=cwd,
            env={**os.environ, "GIT_TERMINAL_PROMPT": "0", **(env or {})},
            stdin=subprocess.DEVNULL if text is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # so that its children (git's ssh, git-remote-https) can be stopped with it
        )
    except OSError as error:
        folder = cwd is not None and not cwd.is_dir()
        raise CommandError(
            f"`{words[0]}` cannot be started{f' in {cwd}' if folder else ''}: {error.strerror}.",
            remedy=f"make the folder {cwd}." if folder else f"install {words[0]} and put it on the PATH.",
        ) from None
    try:
        output, errors = process.communicate(text, timeout=timeout)
    except subprocess.TimeoutExpired:
        end_group(process)
        raise CommandTimedOut(shown, timeout) from None
    except BaseException:
        # Ctrl-C reaches only this process: the command runs in a session of its own
        end_group(process)
        raise
    answer = Answer(process.returncode, redact(output), redact(errors))
    if check and answer.status != 0:
        raise CommandFailed(shown, answer)
    return answer


def end_group(process: subprocess.Popen[Any]) -> None:
    """End the leader of a process group and its children: asked first, so that git removes its locks, then forced."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        end = time.monotonic() + 5
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=5)
