"""Fault injection as SQLite does it: break the Nth external call of a publication, for every N.

`FaultInjector` wraps every external call of the transaction: git commands, operations on the DVC remote, calls of DVC,
and durable local writes. It numbers the calls and breaks one of them; `fault_sweeps.py` runs a scenario with one kind
of fault for every N and checks both remotes and the clone after each. `scenarios.py` defines the scenarios.

The Git remote is always a real one. The DVC remote is a folder here, Drive or S3 in `store_faults.py`, where the HTTP
requests below the operations can be broken too. Time is simulated: a lease passes within a moment. A process dies by
an exception at each later call, which leaves the remotes as SIGKILL does.

Cannot break: what never leaves Python (memory), a write inside git, or the order of two concurrent uploads. Uploads run
one after the other here, so that a number means the same call in each run.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import itertools
import multiprocessing
import os
import random
import secrets
import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
from conftest import ROOT, Stores

from lib import process as commands
from lib.process import CommandFailed, Completed
from lib.sync import RunLock
from lib.sync import publish as publish_module
from lib.sync import remotes as remotes_module
from lib.sync.stores.base import StoredCopy, open_store

SYNC = (str(ROOT / "lib/sync"), str(ROOT / "lib/remotes/repository.py"))
HASTE = 60  # simulated seconds that a sleep of one second takes: two pauses of an asker make a lease
WIRE = "wire"


# ── the DVC remote, seen from the store's side ────────────────────────────────────────────────────────────────────────

Copies = Mapping[str, Mapping[str, bytes]]
"""{path below the DVC remote: {identity of a copy, as a run's record declares it: its bytes}}."""
Decide = Callable[[str], str | None]
"""Returns the fault for a request that has arrived: None, or a kind of fault of the emulator."""


class DvcRemote:
    """A DVC remote as a test sees it, without the code under test: a folder, which is saved together with the clones.

    Other kinds override every method.
    """

    def __init__(self, stores: Stores) -> None:
        self._folder = stores.storage

    def connect(self, clone: Path) -> None:
        """Configure a new clone to use the remote."""

    def copies(self) -> Copies:
        """Return every stored copy, also those that no reader can see."""
        found = {}
        for path in self._folder.rglob("*"):
            if path.is_file():
                found[path.relative_to(self._folder).as_posix()] = {identity_of(path): path.read_bytes()}
        return found

    def put(self, path: str, content: bytes) -> None:
        """Store one more copy, as an unrelated client would."""
        file = self._folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)

    def clear(self, *, cold: bool = False) -> None:
        """Delete every object; if `cold`, everything."""
        shutil.rmtree(self._folder / "files")
        for mark in self._folder.iterdir() if cold else ():
            mark.unlink()

    def keep(self) -> None:
        """Save the content for `restore`."""

    def restore(self) -> None:
        """Restore the saved content."""

    def full_state(self) -> object:
        """Return the whole content, hidden parts too, without times and random names."""
        return sorted((path, file.lstat().st_mode, content_of(file)) for path, file in walk(self._folder))

    def requests(self, _decide: Decide, /) -> contextlib.AbstractContextManager[None]:
        """Call `decide` for every request within the block; a folder has none."""
        return contextlib.nullcontext()


def identity_of(file: Path) -> str:
    """Return the identity of a copy in a folder."""
    second, fraction = divmod(file.stat().st_mtime_ns, 10**9)
    return f"{second}.{fraction:09d}" if fraction else str(second)


def walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield every file and folder below a folder, with its path from the folder's parent."""
    for file in folder.rglob("*"):
        yield file.relative_to(folder.parent).as_posix(), file


def content_of(file: Path) -> bytes:
    """Return the bytes of a file; empty for a folder."""
    return file.read_bytes() if file.is_file() else b""


# ── time, chance and other processes ──────────────────────────────────────────────────────────────────────────────────


class Surroundings:
    """The clock and the random names of `lib.sync`: both are simulated, so that equal faults leave equal worlds.

    A sleep lets the other process finish, and then only moves the clock. Each process draws its own names.
    """

    def __init__(self) -> None:
        self.peer: Peer | None = None
        self._ahead = 0.0
        self.begin("")

    def begin(self, process: str) -> None:
        """Draw the names of another process, or of another fault."""
        self._process, self._drawn = process, itertools.count()

    def simulate(self, patch: pytest.MonkeyPatch) -> None:
        """Replace the clock and the source of random names."""
        sleep, monotonic = time.sleep, time.monotonic

        def sleep_simulated(seconds: float) -> None:
            if not _is_called_by_sync():
                sleep(seconds)
                return
            if self.peer is not None:
                self.peer.go_on()
            self._ahead += HASTE * seconds

        patch.setattr(time, "sleep", sleep_simulated)
        patch.setattr(time, "monotonic", lambda: monotonic() + self._ahead * _is_called_by_sync())
        patch.setattr(secrets, "token_hex", self._token)
        patch.setattr(random, "SystemRandom", lambda: random.Random(self._token(8)))

    def _token(self, size: int = 32) -> str:
        return hashlib.sha256(f"{self._process} {next(self._drawn)}".encode()).hexdigest()[: 2 * size]


SURROUNDINGS = Surroundings()


def _is_called_by_sync() -> bool:
    """Return whether the caller of the caller is a module of `lib.sync`."""
    return sys._getframe(2).f_code.co_filename.startswith(SYNC)


class Peer:
    """Another clone's process, paused in the middle of its work until `go_on`, which returns when it has ended."""

    def __init__(self, work: Callable[[Callable[[], None]], object], report: Path) -> None:
        for thread in threading.enumerate():
            if thread.name.startswith("lock of "):
                thread.join(10)  # its lock was released, and threads do not survive a fork
        context = multiprocessing.get_context("fork")
        paused, self._go = context.Event(), context.Event()
        self._report = report

        def pause() -> None:
            paused.set()
            self._go.wait()

        def run() -> None:
            SURROUNDINGS.begin("peer")
            with report.open("w") as output, contextlib.redirect_stdout(output):
                try:
                    work(pause)
                except BaseException:
                    traceback.print_exc(file=output)
                    raise

        self._process = context.Process(target=run)
        self._process.start()
        while not paused.wait(0.2):
            assert self._process.is_alive(), report.read_text(encoding="utf-8")

    def go_on(self) -> int:
        """Run the process to its end and return its exit status."""
        self._go.set()
        self._process.join()
        return self._process.exitcode or 0


# ── the injector ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Call:
    """One external call: how to make it, how its failure looks, and how to do it by half, if that is possible."""

    boundary: str
    name: str
    act: Callable[[], Any]
    fail: Callable[[], Any]
    words: tuple[str, ...] = ()
    half: Callable[[], Any] = lambda: None


class FaultInjector:
    """Wraps all external calls of a publication; counts those that the kind of fault applies to, breaks number `at`.

    With `from_refusal` calls are counted from the first failed push: those of the roll back.
    """

    def __init__(self, kind: Kind, at: int, *, from_refusal: bool = False, remote: DvcRemote | None = None) -> None:
        self.kind, self.at, self._remote = kind, at, remote
        self.counting = not from_refusal and not kind.holds
        self.counted: list[str] = []
        self.broken: Call | None = None
        self._late: list[tuple[Sequence[str | Path], dict[str, Any]]] = []
        self._has_held = False
        self._locks: list[RunLock] = []
        self._lock = threading.Lock()

    def intercept(self, call: Call) -> Any:
        """Make a call, or break it."""
        kind = self.kind
        if kind.holds and not self._has_held and creates_a_branch(call):
            self._has_held = True
            return _do_half(self, call)
        with self._lock:
            counts = self.counting and (call.boundary == WIRE) == kind.on_the_wire and kind.applies(call)
            if counts:
                self.counted.append(f"{call.boundary}: {call.name}")
            first = self.broken is None and counts and len(self.counted) == self.at
            if first:
                self.broken = call
        if self.broken is None:
            return call.act()
        return (kind.first if first else kind.later)(self, call)

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Wrap every external call within the block."""
        import dvc.repo
        import dvc_data.hashfile.hash
        from dvc.exceptions import DvcException

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(publish_module, "AT_ONCE", 1)
            patch.setattr(remotes_module, "AT_ONCE", 1)
            run = commands.run_command
            for module in list(sys.modules.values()):
                if getattr(module, "__name__", "").startswith("lib") and getattr(module, "run_command", None) is run:
                    patch.setattr(module, "run_command", functools.partial(self._git, run))
            patch.setattr(remotes_module, "open_store", lambda repo: _Store(open_store(repo), self))
            self._wrap(patch, dvc_data.hashfile.hash, "hash_file", "dvc", _no_space)
            not_opened = functools.partial(_raise, DvcException, "no space left on device")
            self._wrap(patch, dvc.repo.Repo, "__init__", "dvc", not_opened)
            for owner, names in LOCAL_WRITES:
                for name in names:
                    self._wrap(patch, owner, name, "local", _no_space)
            begin = RunLock.__init__

            def begin_and_note(lock: RunLock, *given: Any, **options: Any) -> None:
                self._locks.append(lock)
                begin(lock, *given, **options)

            patch.setattr(RunLock, "__init__", begin_and_note)
            with self._remote.requests(self._decide) if self._remote else contextlib.nullcontext():
                try:
                    yield
                except Died:
                    for lock in self._locks:  # the system closes the files of a dead process
                        lock._end()
                    raise

    def deliver(self) -> None:
        """Make the pushes arrive that were in progress when the client gave up."""
        while self._late:
            words, options = self._late.pop()
            environment = {**os.environ, **(options.get("env") or {})}
            subprocess.run(words, cwd=options["cwd"], env=environment, capture_output=True)

    def _git(self, run: Callable[..., Completed], command: Sequence[str | Path], **options: Any) -> Completed:
        words = [str(word) for word in command]
        while words[1].startswith("-"):  # options of git itself
            del words[1 : 3 if words[1] == "-c" else 2]

        def act() -> Completed:
            return checked(run(command, **{**options, "check": False}))

        def fail() -> Completed:
            return checked(Completed(128, "", "fatal: unable to access the remote: Connection reset by peer"))

        def checked(answer: Completed) -> Completed:
            self.counting = self.counting or (words[1] == "push" and answer.status != 0)
            if answer.status != 0 and options.get("check", True):
                raise CommandFailed(" ".join(words[:3]), answer)
            return answer

        def send_later() -> Completed:
            self._late.append((command, options))
            return fail()

        name = " ".join(word for word in words[1:] if not word.startswith("--"))[:90]
        return self.intercept(Call("git", name, act, fail, tuple(words), send_later))  # type: ignore[no-any-return]

    def _decide(self, request: str) -> str | None:
        """Return the fault for a request that has reached the store."""
        return self.intercept(Call(WIRE, request[:90], lambda: None, lambda: "cut", (request,)))  # type: ignore[no-any-return]

    def _wrap(
        self, patch: pytest.MonkeyPatch, owner: Any, name: str, boundary: str, fail: Callable[[], NoReturn]
    ) -> None:  # fmt: skip
        """Wrap a function of a library where `lib.sync` calls it; other callers get the real function."""
        real = getattr(owner, name)

        @functools.wraps(real)
        def wrapper(*args: Any, **options: Any) -> Any:
            if not _is_called_by_sync() or not _writes(name, args, options):
                return real(*args, **options)
            shown = [Path(arg).name for arg in args[:2] if isinstance(arg, (str, Path))]
            act = functools.partial(real, *args, **options)
            return self.intercept(Call(boundary, f"{name} {' '.join(shown)}", act, fail))

        patch.setattr(owner, name, wrapper)


class _Store:
    """A DVC remote whose methods are all wrapped."""

    def __init__(self, store: Any, injector: FaultInjector) -> None:
        self._store, self._injector = store, injector

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._store, name)
        if not callable(value) or name == "path_of":
            return value

        def wrapper(*args: Any, **options: Any) -> Any:
            def lie() -> StoredCopy:
                _, source, identity, *_ = args
                content = source.read_bytes()
                return StoredCopy(identity, len(content), hashlib.md5(content).hexdigest())

            shown = args[0].removeprefix("files/md5/")[:50] if args and isinstance(args[0], str) else ""
            act = functools.partial(value, *args, **options)
            return self._injector.intercept(Call("store", f"{name} {shown}", act, _no_answer, half=lie))

        return wrapper


LOCAL_WRITES: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (Path, ("write_text", "write_bytes", "replace", "rename", "unlink", "open", "mkdir", "rmdir", "chmod", "touch")),
    (os, ("fsync", "replace", "rename", "unlink", "remove", "link", "makedirs", "mkdir", "write", "utime", "fchmod")),
    (shutil, ("copyfile", "copy", "copy2", "copytree", "move", "rmtree")),
)


def _writes(name: str, args: Sequence[Any], options: dict[str, Any]) -> bool:
    return name != "open" or any(letter in (options.get("mode") or (*args, "r")[1]) for letter in "wax+")


def _raise(error: type[Exception], *about: object) -> NoReturn:
    raise error(*about)


_no_space = functools.partial(_raise, OSError, errno.ENOSPC, "No space left on device")
_no_answer = functools.partial(_raise, OSError, errno.ECONNRESET, "Connection reset by peer")


# ── the kinds of fault ────────────────────────────────────────────────────────────────────────────────────────────────

Strike = Callable[[FaultInjector, Call], Any]
"""What a fault does to a call: returns the answer, or raises the error."""


def _make(_injector: FaultInjector, call: Call) -> Any:
    return call.act()


@dataclass(frozen=True)
class Kind:
    """What happens to call number N (`first`), and to those after it (`later`)."""

    name: str
    first: Strike
    later: Strike = _make
    applies: Callable[[Call], bool] = lambda _call: True
    on_the_wire: bool = False
    """Whether HTTP requests are counted and broken, instead of operations."""
    arrives: str = ""
    """When a push in progress arrives: `before` or `after` the recovery."""
    holds: bool = False
    """Whether the commit push is in progress when the client gives up; calls are counted from then on."""
    repeats: bool = False
    """Whether failed pushes are repeated; else the first failure counts."""
    harmless: bool = False
    """Whether the publication must succeed."""
    skips_recovery: bool = False
    """Whether a retry comes before any recovery."""


class Died(BaseException):
    """The process has died: nothing that it would do from now on happens."""


def _dying(act: Callable[[Call], object]) -> Strike:
    """Return the strike after which the process is dead."""

    def act_and_die(_injector: FaultInjector, call: Call) -> NoReturn:
        with contextlib.suppress(Exception):
            act(call)
        raise Died

    return act_and_die


_die = _dying(lambda _call: None)


def _fail(_injector: FaultInjector, call: Call) -> Any:
    return call.fail()


def _fail_at_this_boundary(injector: FaultInjector, call: Call) -> Any:
    assert injector.broken is not None
    return call.fail() if call.boundary == injector.broken.boundary else call.act()


def _lose(_injector: FaultInjector, call: Call) -> Any:
    """Make the call, then fail as if the answer was lost."""
    answer = call.act()
    if hasattr(answer, "close"):
        answer.close()
    return call.fail()


def _do_half(_injector: FaultInjector, call: Call) -> Any:
    return call.half()


def _deliver(injector: FaultInjector, call: Call) -> Any:
    injector.deliver()
    return call.act()


def _let_the_peer_finish(_injector: FaultInjector, call: Call) -> Any:
    assert SURROUNDINGS.peer is not None
    SURROUNDINGS.peer.go_on()
    return call.act()


def is_push(call: Call) -> bool:
    """Return whether the call updates refs of the Git remote."""
    return call.words[1:2] == ("push",)


def creates_a_branch(call: Call) -> bool:
    """Return whether the call is the commit push of a run."""
    return _updates(call, ":refs/heads/kaggle-train-")


def moves_a_checkpoint(call: Call) -> bool:
    """Return whether the call publishes a checkpoint."""
    return _updates(call, ":refs/heads/kaggle-checkpoint-")


def _updates(call: Call, ref: str) -> bool:
    return is_push(call) and any(ref in word for word in call.words if word[0] not in "-:")


def is_deletion(call: Call) -> bool:
    """Return whether the call deletes a copy on the DVC remote."""
    return call.name.startswith("delete ")


def stores_an_object(call: Call) -> bool:
    """Return whether the call stores a copy under an object's path."""
    return call.boundary == "store" and call.name.startswith("create ") and "kaggle-training" not in call.name


ONCE = Kind("fails once", _fail)
ON = Kind("fails from then on", _fail, _fail)
BOUNDARY = Kind("fails with all calls of its sort", _fail, _fail_at_this_boundary)
LOST = Kind("happens and its answer is lost", _lose)
LOST_PUSH = Kind("a push happens and its answer is lost", _lose, applies=is_push, harmless=True)
REPEATED = Kind("a push fails and is repeated", _fail, applies=is_push, harmless=True, repeats=True)
LATE = Kind("a push arrives before the recovery", _do_half, applies=is_push, arrives="before")
LATE_AND_REPEATED = Kind(
    "a push is repeated and arrives late", _do_half, applies=is_push, arrives="before", harmless=True, repeats=True
)
VERY_LATE = Kind("a push arrives after the recovery", _do_half, applies=is_push, arrives="after")
DELAYED = Kind("the commit push arrives right before it", _deliver, holds=True)
LIES = Kind("reports success without an effect", _do_half, applies=stores_an_object)
MEANWHILE = Kind("the peer finishes right before it", _let_the_peer_finish, harmless=True)
DIES = Kind("dies right before", _die, _die)
DIES_AFTER = Kind("dies right after", _dying(lambda call: call.act()), _die)
DIES_AND_RETRIES = Kind(
    "dies right after, and retries at once", _dying(lambda call: call.act()), _die, skips_recovery=True
)
DIES_AT_A_PUSH = Kind(
    "dies at a push, which arrives later", _dying(lambda call: call.half()), _die, applies=is_push, arrives="after"
)


def pausing(pause: Callable[[], None], applies: Callable[[Call], bool]) -> Kind:
    """Return the kind that pauses right before the call."""

    def pause_first(_injector: FaultInjector, call: Call) -> Any:
        pause()
        return call.act()

    return Kind("pauses", pause_first, applies=applies)
