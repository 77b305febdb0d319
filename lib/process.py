"""Run subprocesses: the only module that starts other programs.

The exception is `lib/kaggle/install.py`, which runs before this package's dependencies are installed.

Guarantees: no command prompts at a terminal, and each is ended together with its children. `run_command` has a time
limit and redacts the output before it returns it; `FollowedCommand` redacts each line. Cannot: roll back what a command
did before it was stopped; limit or redact what `LoggedCommand` and `run_side_by_side` print.
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
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

from lib.errors import CommandError

MINUTE = 60.0
SILENCE = 2 * MINUTE  # without a received byte, after which a connection is dropped
LONG = 200  # characters of an argument that an error message shows


def limit_silence() -> None:
    """Set a socket timeout of `SILENCE` for this process, unless one is set: Google's client would wait forever."""
    if socket.getdefaulttimeout() is None:
        socket.setdefaulttimeout(SILENCE)


@dataclass(frozen=True)
class Completed:
    """The exit status and the redacted output of a command."""

    status: int
    output: str
    errors: str


class CommandFailed(CommandError):
    """A command exited with a status other than 0."""

    def __init__(self, command: str, answer: Completed) -> None:
        self.answer = answer
        output = (answer.errors.strip() or answer.output.strip() or "it printed nothing")[-4000:]
        super().__init__(f"`{command}` failed with status {answer.status}:\n{output}")


class CommandTimedOut(CommandError):
    """A command was stopped because it exceeded its time limit."""

    def __init__(self, command: str, seconds: float) -> None:
        super().__init__(
            f"`{command}` gave no answer within {seconds:.0f} s and was stopped.",
            remedy="check the network and the host that it connects to, then run the same command again.",
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
) -> Completed:
    """Run a program and return its exit status and redacted output.

    `env` is added to this process's environment for this one command; pass credentials in it. `text` is the standard
    input; without it, the standard input is empty. With `check`, raises `CommandFailed` on a status other than 0.
    Raises `CommandTimedOut` at the time limit, and `CommandError` when the program cannot be started.
    """
    words = [str(word) for word in command]
    # redact before shortening: a truncated credential would not be recognised and would leak
    shown = " ".join(word if len(word) < LONG else word[:LONG] + "…" for word in map(redact, words))
    given = subprocess.DEVNULL if text is None else subprocess.PIPE
    process = None
    try:
        with _deferred_interrupt():
            process = _start(words, subprocess.PIPE, subprocess.PIPE, stdin=given, cwd=cwd, env=env)
        output, errors = process.communicate(text, timeout=timeout)
    except BaseException as error:
        # Ctrl-C does not reach the command, which runs in a session of its own
        if process is not None:
            end_group(process)
        if isinstance(error, subprocess.TimeoutExpired):
            raise CommandTimedOut(shown, timeout) from None
        raise
    answer = Completed(process.returncode, redact(output), redact(errors))
    if check and answer.status != 0:
        raise CommandFailed(shown, answer)
    return answer


@contextlib.contextmanager
def _deferred_interrupt() -> Iterator[None]:
    """Raise Ctrl-C at the end of the block: within it, a program that was just started would be lost and run on."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    received: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda *given: received.append(given))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if received:
        handler(*received[0])


def _start(
    words: Sequence[str],
    stdout: int | IO[bytes],
    stderr: int,
    *,
    stdin: int = subprocess.DEVNULL,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[str]:
    """Start a program that cannot prompt at a terminal. Raises `CommandError` when it cannot be started."""
    try:
        return subprocess.Popen(
            words,
            cwd=cwd,
            env={**os.environ, "GIT_TERMINAL_PROMPT": "0", **(env or {})},
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # its children (git's ssh, git-remote-https) can then be stopped with it
        )
    except OSError as error:
        folder = cwd is not None and not cwd.is_dir()
        raise CommandError(
            f"`{words[0]}` cannot be started{f' in {cwd}' if folder else ''}: {error.strerror}.",
            remedy=f"create the folder {cwd}." if folder else f"install {words[0]} and put it on the PATH.",
        ) from None


def found_from(root: Path) -> dict[str, str]:
    """Return the PYTHONPATH with which a Python subprocess imports the package in `root`; existing entries are kept."""
    paths = filter(None, [str(root), os.environ.get("PYTHONPATH", "")])
    return {"PYTHONPATH": os.pathsep.join(paths)}


class FollowedCommand:
    """A subprocess whose output lines are read while it runs; its standard error is discarded.

    `close` stops it and its children.
    """

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str] | None = None, redact: Callable[[str], str] = str
    ) -> None:
        self._process = _start(command, subprocess.PIPE, subprocess.DEVNULL, env=env)
        assert self._process.stdout is not None  # `_start` always opens this pipe
        self._output = self._process.stdout.fileno()
        self._redact = redact
        self._rest = b""
        self.has_ended = False

    def lines(self, wait: float) -> Iterator[str]:
        """Yield the lines that arrive within `wait` seconds, without line ends; stop early when the program exits."""
        end = time.monotonic() + wait
        while not self.has_ended and (left := end - time.monotonic()) > 0:
            if not select.select([self._output], [], [], left)[0]:
                return
            data = os.read(self._output, 65536)
            self.has_ended = not data
            *whole, self._rest = (self._rest + data).split(b"\n")
            if self.has_ended and self._rest:
                whole.append(self._rest)
            yield from (self._redact(line.decode("utf-8", "replace").rstrip("\r")) for line in whole)

    def close(self) -> None:
        """Stop the program if it still runs; `lines` yields nothing afterwards."""
        self.has_ended = True
        end_group(self._process)


class LoggedCommand:
    """A background subprocess that writes its standard output and error to the file `log`."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        with log.open("wb") as output:
            self._process = _start(command, output, subprocess.STDOUT)

    @property
    def status(self) -> int | None:
        """The exit status; None while the program runs."""
        return self._process.poll()

    def interrupt(self) -> None:
        """Send SIGINT, as Ctrl-C does, so that the program can exit cleanly."""
        self._process.send_signal(signal.SIGINT)

    def close(self, patience: float = 0) -> None:
        """Wait up to `patience` seconds for the program to exit, then stop it and its children."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        end_group(self._process)


def run_side_by_side(
    command: Sequence[str],
    identities: Sequence[Mapping[str, str]],
    *,
    cwd: Path,
    beat: Path,
    stall: float,
    confirm: Callable[[], object] = bool,
) -> list[int] | None:
    """Run one program in parallel, one process per entry of `identities`, and print the output.

    Each entry is added to the environment of its process. The run ends when all processes have exited or one has
    failed. The processes hang when the file `beat` is not modified for `stall` seconds. `confirm` is called about twice
    a second; an error that it raises ends the processes. Returns the exit statuses, or None after a hang. In every
    case, also on an exception, no process is left running.
    """
    reading, writing = os.pipe()
    processes: list[subprocess.Popen[str]] = []
    try:
        with _deferred_interrupt():
            for identity in identities:
                # if one cannot be started, the earlier ones must be stopped
                processes.append(_start(command, writing, subprocess.STDOUT, cwd=cwd, env=identity))  # noqa: PERF401
        os.close(writing)
        hang = _relay(reading, processes, beat, stall, confirm)
    finally:
        for process in processes:
            end_group(process)
        os.close(reading)
    return None if hang else [process.returncode for process in processes]


def _relay(
    reading: int, processes: Sequence[subprocess.Popen[str]], beat: Path, stall: float, confirm: Callable[[], object]
) -> bool:
    """Print the output of processes until they end; return True when they hang."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    seen, alive_at = 0, time.monotonic()
    while time.monotonic() - alive_at < stall:
        confirm()
        ended = [process.poll() for process in processes]
        if select.select([reading], [], [], 0.5)[0]:
            data = os.read(reading, 65536)
            print(decoder.decode(data), end="", flush=True)
            over = not data
        else:  # no output: use the exit statuses, because a grandchild may keep the pipe open
            over = any(ended) or None not in ended
        if over:
            return False
        now = beat.stat().st_mtime_ns
        if now != seen:
            seen, alive_at = now, time.monotonic()
    return True


def die_with(parent: int) -> None:
    """Exit when the process `parent` that started this one dies: a killed parent cannot stop its children."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, prctl(2)
    if os.getppid() != parent:
        sys.exit(1)


def end_group(process: subprocess.Popen[Any]) -> None:
    """Stop a process group, leader and children: SIGTERM first, so that git removes its lock files, then SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        end = time.monotonic() + 5
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=5)
