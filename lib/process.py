"""The only door to other programs (but for `lib/kaggle/install.py`, which runs before this package's needs are there).

Every command has a time limit, dies with all its children when it is passed, asks nothing at a terminal, and what it
printed is redacted before anybody sees it. Cannot: undo what a command did before it was stopped.
"""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    process = _start(words, cwd, env, subprocess.DEVNULL if text is None else subprocess.PIPE, subprocess.PIPE)
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


def _start(
    words: Sequence[str], cwd: Path | None, env: Mapping[str, str] | None, given: int, errors: int
) -> subprocess.Popen[str]:
    """Start a program that asks nothing at a terminal. Raises `CommandError` when it cannot be started."""
    try:
        return subprocess.Popen(
            words,
            cwd=cwd,
            env={**os.environ, "GIT_TERMINAL_PROMPT": "0", **(env or {})},
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=errors,
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


def found_from(root: Path) -> dict[str, str]:
    """Give the environment in which another Python finds the package in `root`, and all else as this process does."""
    paths = filter(None, [str(root), os.environ.get("PYTHONPATH", "")])
    return {"PYTHONPATH": os.pathsep.join(paths)}


class FollowedCommand:
    """A program whose lines are read while it works; its errors are not. `close` ends it with its children."""

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str] | None = None, redact: Callable[[str], str] = str
    ) -> None:
        self._process = _start(command, None, env, subprocess.DEVNULL, subprocess.DEVNULL)
        assert self._process.stdout is not None  # _start asks for it
        self._output = self._process.stdout.fileno()
        self._redact = redact
        self._rest = b""
        self.has_ended = False

    def lines(self, wait: float) -> Iterator[str]:
        """Give the lines that come within `wait` seconds, each without its end; fewer when the program ends."""
        end = time.monotonic() + wait
        while not self.has_ended and (left := end - time.monotonic()) > 0:
            if not select.select([self._output], [], [], left)[0]:
                return
            said = os.read(self._output, 65536)
            self.has_ended = not said
            *whole, self._rest = (self._rest + said).split(b"\n")
            if self.has_ended and self._rest:
                whole.append(self._rest)
            yield from (self._redact(line.decode("utf-8", "replace").rstrip("\r")) for line in whole)

    def close(self) -> None:
        """End it, if it has not ended by itself; there are no lines any more."""
        self.has_ended = True
        end_group(self._process)


class LoggedCommand:
    """A program that works beside this process; whatever it says goes into the file `log`."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    @property
    def status(self) -> int | None:
        """Its exit status; None while it works."""
        return self._process.poll()

    def interrupt(self) -> None:
        """Let it end by itself, as Ctrl-C would."""
        self._process.send_signal(signal.SIGINT)

    def close(self, patience: float = 0) -> None:
        """End it with its children, when it has not ended by itself within `patience` seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        end_group(self._process)


def run_side_by_side(
    command: Sequence[str], identities: Sequence[Mapping[str, str]], *, cwd: Path, beat: Path, stall: float
) -> list[int] | None:
    """Run one program in as many processes as there are `identities`, added to their environments; print what they say.

    They are over when all have ended or one has failed, and hang when the file `beat` does not change for `stall`
    seconds. Gives their exit statuses, None when they hang; whatever happens, none of them is left.
    """
    reading, writing = os.pipe()
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for identity in identities:
            processes.append(  # noqa: PERF401  the ones before must be ended when one cannot be started
                subprocess.Popen(
                    command,
                    cwd=cwd,
                    env={**os.environ, **identity},
                    stdin=subprocess.DEVNULL,
                    stdout=writing,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
        os.close(writing)
        hang = _relay(reading, processes, beat, stall)
    finally:
        for process in processes:
            end_group(process)
        os.close(reading)
    return None if hang else [process.returncode for process in processes]


def _relay(reading: int, processes: Sequence[subprocess.Popen[bytes]], beat: Path, stall: float) -> bool:
    """Print what processes say until they are over; True when they hang."""
    shown = _Shown()
    seen, alive_at = 0, time.monotonic()
    while time.monotonic() - alive_at < stall:
        ended = [process.poll() for process in processes]
        if select.select([reading], [], [], 0.5)[0]:
            said = os.read(reading, 65536)
            shown.add(said)
            over = not said
        else:  # silent: over, unless somebody works; a grandchild may still hold the pipe
            over = any(ended) or all(status is not None for status in ended)
        if over:
            shown.flush()
            return False
        now = beat.stat().st_mtime_ns
        if now != seen:
            seen, alive_at = now, time.monotonic()
    shown.flush()
    return True


class _Shown:
    """Prints a stream of bytes as text; a progress bar that rewrites its line is shown twice a second."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text, self._at = "", 0.0

    def add(self, data: bytes) -> None:
        self._text += self._decoder.decode(data)
        if time.monotonic() - self._at > 0.5:  # noqa: PLR2004
            self.flush()

    def flush(self) -> None:
        lines = self._text.split("\n")
        parts = [line.rstrip("\r").rpartition("\r") for line in lines]
        print("\n".join(f"{middle}{last}" for _, middle, last in parts), end="", flush=True)
        self._text, self._at = "", time.monotonic()


def die_with(parent: int) -> None:
    """End with the process that started this one, also when it is killed: nobody would end this one then."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, prctl(2)
    if os.getppid() != parent:
        sys.exit(1)


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
