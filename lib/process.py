"""Run subprocesses: the only module of lib that starts other programs; standard library only.

Guarantees: no command prompts at a terminal, and each is ended together with its children. Every program gets the
environment of `make_environment`, in which each setting of the tools that a run uses is there for a named reason.
`run_command` has a time limit and redacts the output before it returns it; `FollowedCommand` redacts each line. Cannot:
roll back what a command did before it was stopped; limit or redact what `LoggedCommand` and `SideBySide` print.
"""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import os
import re
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

from lib.errors import CommandError, HostError

MINUTE = 60.0
SILENCE = 2 * MINUTE  # without a received byte, after which a connection is dropped
LONG = 200  # characters of an argument that an error message shows

DECIDED = ("UV_", "PIP_", "GIT_", "DVC_", "PYTHON", "WANDB_", "CUDA_", "TORCHELASTIC_")
"""Prefixes of the variables that set the tools of a run: those that `KEPT` does not name are dropped. Other variables
are the machine's (paths, proxies, certificates, accounts, threads) and pass, unless `DROPPED` names them."""
KEPT: Mapping[str, str] = {
    # uv and pip: how packages are reached and where they are kept; which ones is decided by uv.lock and its hashes
    r"UV_(DEFAULT_INDEX|(EXTRA_)?INDEX\w*|FIND_LINKS|INSECURE_HOST|KEYRING_PROVIDER|CONFIG_FILE)": "a mirror",
    r"UV_(HTTP_\w+|REQUEST_TIMEOUT|NATIVE_TLS|SYSTEM_CERTS|OFFLINE|CONCURRENT_\w+)": "the network",
    r"UV_(CACHE_DIR|NO_CACHE|LINK_MODE|TOOL_DIR|PYTHON_INSTALL_DIR)": "folders",
    r"PIP_((EXTRA_)?INDEX_URL|FIND_LINKS|NO_INDEX|TRUSTED_HOST|(CLIENT_)?CERT|CONFIG_FILE|KEYRING_\w+)": "a mirror",
    r"PIP_(PROXY|(DEFAULT_)?TIMEOUT|RETRIES|CACHE_DIR|NO_CACHE_DIR|DISABLE_PIP_VERSION_CHECK)": "the network, folders",
    r"PIP_(BREAK_SYSTEM_PACKAGES|ROOT_USER_ACTION)": "an image whose Python pip may change",
    # Git: the user's settings and ways to sign in; never a repository (GIT_DIR …) or a trace, which prints keys
    r"GIT_CONFIG_(GLOBAL|SYSTEM|NOSYSTEM|COUNT|(KEY|VALUE)_\d+)": "the user's settings",
    r"GIT_(AUTHOR|COMMITTER)_(NAME|EMAIL)": "the user's name",
    r"GIT_(ASKPASS|SSH|SSH_COMMAND|SSH_VARIANT|SSL_\w+|PROXY_\w+|HTTP_\w+|ALLOW_PROTOCOL)": "the way to the host",
    r"GIT_(EXEC_PATH|TEMPLATE_DIR)": "a Git that is installed in another place than it was built for",
    r"DVC_(NO_ANALYTICS|SITE_CACHE_DIR|GLOBAL_CONFIG_DIR|SYSTEM_CONFIG_DIR)": "folders of settings and caches",
    r"PYTHON(PATH|HOME)": "the packages of step 2, and this Python's own place",
    r"PYTHON(DONTWRITEBYTECODE|PYCACHEPREFIX|UNBUFFERED|FAULTHANDLER)": "no effect on a result",
    # W&B: account and folders; the run's id, project, entity and mode are given in code
    r"WANDB_(API_KEY|BASE_URL|IDENTITY_TOKEN_FILE|INSECURE_DISABLE_SSL|X_EXTRA_HTTP_HEADERS)": "the account",
    r"WANDB_(CONFIG_DIR|CACHE_DIR|DATA_DIR|ERROR_REPORTING)": "folders, and what this project sets itself",
    r"CUDA_(VISIBLE_DEVICES|DEVICE_ORDER|HOME|PATH|CACHE_PATH|MPS_\w+)": "the GPUs of this run, and folders",
}
"""The settings that pass, as patterns of whole names, each with its reason."""
DROPPED = (
    "FORCE_COLOR", "CLICOLOR_FORCE", "LANGUAGE",  # output is parsed: no colours, and English
    "JUPYTER_PATH",  # its kernels would be taken before this Python's own
    "VIRTUAL_ENV",  # uv would take it for the Python to install into
    "RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",  # another run's
)  # fmt: skip
GIVEN = {"GIT_TERMINAL_PROMPT": "0", "NO_COLOR": "1", "LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "utf-8"}
"""What every program gets: it does not ask, and writes English in UTF-8 without colours."""
FOLDERS = ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "DVC_SITE_CACHE_DIR", "DVC_GLOBAL_CONFIG_DIR",
           "DVC_SYSTEM_CONFIG_DIR")  # fmt: skip
"""Variables that name folders of settings and caches of the tools of a run, which make a missing one."""
_PASSES = re.compile("|".join(KEPT))


def _is_dropped(name: str) -> bool:
    return name in DROPPED or (name.startswith(DECIDED) and name not in GIVEN and not _PASSES.fullmatch(name))


def make_environment(added: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a subprocess: what passes of this process's own, `GIVEN`, and `added`."""
    passed = {name: value for name, value in os.environ.items() if not _is_dropped(name)}
    return {**passed, **GIVEN, **(added or {})}


def clean_environment() -> None:
    """Drop the settings that no subprocess gets from this process too, where libraries read them and start programs.

    Libraries of this process do not ask for a sign-in either. Raises `HostError` if one of `FOLDERS` names no folder:
    each library would end in an error of its own, later.
    """
    for name in filter(_is_dropped, list(os.environ)):
        del os.environ[name]
    os.environ["GDRIVE_NON_INTERACTIVE"] = "1"  # without an account, DVC would wait for a browser
    for name in FOLDERS:
        place = os.environ.get(name, "")
        nearest = Path(next(filter(os.path.exists, (place, *map(str, Path(place).parents))), ""))
        if place and not nearest.is_dir():
            raise HostError(f"{name} is {place}, and {nearest} is no folder.", remedy=f"correct {name}, or unset it.")
    if os.path.expanduser("~") == "~":  # noqa: PTH111  `Path.home` raises an error of its own
        raise HostError("this user has no home folder on this machine.", remedy="set HOME to a folder.")


def git_settings(settings: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return the variables that add settings to those which this process's environment gives to Git."""
    count = os.environ.get("GIT_CONFIG_COUNT", "")
    first = int(count) if count.isdecimal() else 0
    numbered = {
        f"GIT_CONFIG_{word}_{number}": text
        for number, setting in enumerate(settings, first)
        for word, text in zip(("KEY", "VALUE"), setting, strict=True)
    }
    return {**numbered, "GIT_CONFIG_COUNT": str(first + len(settings))}


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
        self.command, self.answer = command, answer
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

    `env` is added to the environment of `make_environment` for this one command; pass credentials in it. `text` is the
    standard input; without it, the standard input is empty. With `check`, raises `CommandFailed` on a status other than
    0. Raises `CommandTimedOut` at the time limit, and `CommandError` when the program cannot be started.
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
            env=make_environment(env),
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


class SideBySide:
    """One program in parallel, a process per entry of `identities`, each of which reads a line when it is ready.

    Each entry is added to the environment of its process. A process whose standard input ends without a line must exit:
    it ends so when this process dies. `run`, `close` and the end of this object leave no process running.
    """

    def __init__(self, command: Sequence[str], identities: Sequence[Mapping[str, str]], *, cwd: Path) -> None:
        self._processes: list[subprocess.Popen[str]] = []
        self._reading, writing = os.pipe()
        try:
            with _deferred_interrupt():
                for identity in identities:
                    self._processes.append(
                        _start(command, writing, subprocess.STDOUT, stdin=subprocess.PIPE, cwd=cwd, env=identity)
                    )
        except BaseException:  # if one cannot be started, the earlier ones must be stopped
            self.close()
            raise
        finally:
            os.close(writing)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # the interpreter may be ending
            self.close()

    def __len__(self) -> int:
        return len(self._processes)

    @property
    def are_alive(self) -> bool:
        """Whether no process has ended."""
        return bool(self._processes) and not any(process.poll() is not None for process in self._processes)

    def run(self, line: str, *, beat: Path, stall: float, confirm: Callable[[], object] = bool) -> list[int] | None:
        """Send every process the line, and print the output until all have exited or one has failed.

        The processes hang when the file `beat` is not modified for `stall` seconds. `confirm` is called about twice a
        second; an error that it raises ends the processes. Returns the exit statuses, or None after a hang.
        """
        processes = self._processes
        try:
            for process in processes:
                given, process.stdin = process.stdin, None
                assert given is not None, "it runs once"
                with contextlib.suppress(BrokenPipeError), given:  # its exit status tells of one that has died
                    given.write(f"{line}\n")
            hang = _relay(self._reading, processes, beat, stall, confirm)
        finally:
            self.close()
        return None if hang else [process.returncode for process in processes]

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            end_group(process)
        self._processes = []
        if self._reading >= 0:
            os.close(self._reading)
            self._reading = -1


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


_REMOVERS: dict[int, subprocess.Popen[str]] = {}
"""The helper that removes files when a process ends, by the id of that process: a fork has none of its own yet."""


def remove_at_end(path: Path) -> None:
    """Have a file removed when this process has ended, in whatever way: a killed process cannot do it itself."""
    helper = _REMOVERS.get(os.getpid())
    if helper is None:
        # reads the paths until this process, which holds the pipe open, is gone
        script = 'while read -r file; do set -- "$@" "$file"; done; rm -f -- "$@"'
        helper = _REMOVERS[os.getpid()] = subprocess.Popen(
            ["sh", "-c", script, "sh"], cwd="/", env={"PATH": os.environ.get("PATH", os.defpath)}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    assert helper.stdin is not None
    helper.stdin.write(f"{path.absolute()}\n")
    helper.stdin.flush()


def remove_now() -> None:
    """Remove the files of `remove_at_end`."""
    if helper := _REMOVERS.pop(os.getpid(), None):
        helper.communicate()


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


@contextlib.contextmanager
def interrupts(*numbers: signal.Signals) -> Iterator[list[int]]:
    """Raise `KeyboardInterrupt` on each of these signals within the context, if this is the main thread.

    Yields the list of the signals that have arrived: an exception alone may be lost.
    """
    received: list[int] = []

    def receive(number: int, _: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt(signal.Signals(number).name)

    in_main_thread = threading.current_thread() is threading.main_thread()  # Python allows handlers nowhere else
    before = {number: signal.signal(number, receive) for number in numbers if in_main_thread}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
