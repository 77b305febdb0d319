"""Fault injection as SQLite does it: break the Nth external call of a publication, for every N.

`FaultInjector` wraps every external call of the transaction: git commands, operations on the DVC remote, calls of DVC
and GitPython, and durable local writes. It numbers the calls and breaks one of them; `fault_sweeps.py` runs a scenario
with one kind of fault for every N and checks both remotes and the clone after each.

The Git remote is always a real one. The DVC remote is a `DvcRemote`: a folder here, Drive and S3 in `store_faults.py`,
where the HTTP requests below the operations can be broken too.

Cannot break: what never leaves Python (memory, clocks), a write inside git, or the order of two concurrent uploads.
Uploads run one after the other here, so that a number means the same call in each run.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import functools
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, Protocol

import pytest
from conftest import ROOT, WEIGHTS, Stores, processes_with
from publications import BRANCH, CHECKPOINT, OTHER, md5_of, object_name, publish

from lib import process as commands
from lib.process import CommandFailed, Completed
from lib.remotes.credentials import Credentials
from lib.sync import Published, RunLock, recover
from lib.sync import intent as journal
from lib.sync import publish as publish_module
from lib.sync import remotes as remotes_module
from lib.sync.stores.base import open_objects

HELD = "detection-exp001"
OURS, THEIRS = "f" * 8, "0" * 8  # prefixes of the ids of intents: those of the faulted clone are recovered last
SYNC = str(ROOT / "lib" / "sync")
MARK = "FAULT_SWEEP"  # in the environment of each subprocess of a process that is killed
KILLED = "\nkilled at "
MANY = 400  # more calls than a publication makes

KINDS = ("kaggle-train", "kaggle-checkpoint")


# ── the DVC remote, seen from the store's side ────────────────────────────────────────────────────────────────────────

Copies = Mapping[str, Mapping[str, bytes]]
"""{path below the DVC remote: {identity of a copy: its bytes}}."""
Decide = Callable[[str], str | None]
"""Returns the fault for a request that has arrived: None, or a kind of fault of the emulator."""


class DvcRemote(Protocol):
    """A DVC remote as a test sees it, without the code under test."""

    survives_forks: bool
    """Whether a child process may use it. If so, a process dies by SIGKILL, else by an exception at each later call."""

    def connect(self, clone: Path) -> None:
        """Configure a new clone to use the remote."""

    def copies(self) -> Copies:
        """Return every stored copy, also those that no reader can see."""

    def put(self, path: str, content: bytes) -> None:
        """Store one more copy, as an unrelated client would."""

    def clear(self) -> None:
        """Delete everything."""

    def keep(self) -> None:
        """Save the content for `restore`."""

    def restore(self) -> None:
        """Restore the saved content."""

    def full_state(self) -> object:
        """Return the whole content, hidden parts too, without times and random names."""

    def requests(self, decide: Decide, /) -> contextlib.AbstractContextManager[None]:
        """Call `decide` for every request within the block."""


class FolderRemote:
    """A folder. It is saved and restored together with the clones."""

    survives_forks = True

    def __init__(self, stores: Stores) -> None:
        self._folder = stores.storage

    def connect(self, clone: Path) -> None:
        """Do nothing: the address is committed."""

    def copies(self) -> Copies:
        """Return every file of the folder, temporary ones too."""
        found = {}
        for path in self._folder.rglob("*"):
            if path.is_file():
                status = path.stat()
                identity = f"{status.st_mtime_ns}-{status.st_ino}"
                found[path.relative_to(self._folder).as_posix()] = {identity: path.read_bytes()}
        return found

    def put(self, path: str, content: bytes) -> None:
        """Write a file."""
        file = self._folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)

    def clear(self) -> None:
        """Empty the folder."""
        shutil.rmtree(self._folder)
        self._folder.mkdir()

    def keep(self) -> None:
        """Do nothing: the folder is copied with the clones."""

    def restore(self) -> None:
        """Do nothing: the folder is restored with the clones."""

    def full_state(self) -> object:
        """Return every file and folder, empty folders too."""
        return sorted((path, file.lstat().st_mode, content_of(file)) for path, file in walk(self._folder))

    def requests(self, _decide: Decide, /) -> contextlib.AbstractContextManager[None]:
        """Do nothing: a folder has no requests."""
        return contextlib.nullcontext()


def walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield every file and folder below a folder, with its path from the folder's parent."""
    for file in folder.rglob("*"):
        yield file.relative_to(folder.parent).as_posix(), file


def content_of(file: Path) -> bytes:
    """Return the bytes of a file; empty for a folder."""
    return file.read_bytes() if file.is_file() else b""


# ── the injector ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Call:
    """One external call: how to make it, how its failure looks, and how to make half of it, if it can be half done."""

    boundary: str
    name: str
    act: Callable[[], Any]
    fail: Callable[[], Any]
    words: tuple[str, ...] = ()
    half: Callable[[], object] | None = None

    def lose(self) -> Any:
        """Make the call, then fail as if the answer was lost."""
        answer = self.act()
        if hasattr(answer, "close"):
            answer.close()
        return self.fail()


class FaultInjector:
    """Wraps all external calls of a publication; counts those that the kind of fault applies to, breaks number `at`."""

    def __init__(
        self,
        kind: Kind,
        at: int,
        *,
        from_refusal: bool = False,
        peer: Peer | None = None,
        ids: str = OURS,
        remote: DvcRemote | None = None,
    ) -> None:
        self.kind, self.at, self.peer, self._ids, self._remote = kind, at, peer, ids, remote
        self.counting = not from_refusal
        self.counted: list[str] = []
        self.broken: Call | None = None
        self.late: list[tuple[tuple[str, ...], dict[str, Any]]] = []
        self._lock = threading.Lock()
        self._in_library = 0

    @property
    def reached(self) -> bool:
        """Return whether the fault has happened."""
        return self.broken is not None

    def intercept(self, call: Call) -> Any:
        """Make a call, or break it."""
        with self._lock:
            counts = self.counting and (call.boundary == WIRE) == self.kind.on_the_wire and self.kind.applies(call)
            if counts:
                self.counted.append(f"{call.boundary}: {call.name}")
            first = self.broken is None and counts and len(self.counted) == self.at
            if first:
                self.broken = call
        return self.kind.strike(self, call, first=first) if self.broken is not None else call.act()

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Wrap every external call within the block."""
        import dvc.repo
        import git
        from dvc.exceptions import DvcException

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(publish_module, "CONCURRENT_UPLOADS", 1)
            patch.setattr(journal, "new_intent_id", lambda: self._ids + secrets.token_hex(4))
            run = commands.run_command
            for module in list(sys.modules.values()):
                if getattr(module, "__name__", "").startswith("lib") and getattr(module, "run_command", None) is run:
                    patch.setattr(module, "run_command", functools.partial(self._git, run))
            patch.setattr(remotes_module, "open_objects", functools.partial(self._open_objects, open_objects))
            for name in ("__init__", *PUBLIC_OF_DVC):
                self._wrap(patch, dvc.repo.Repo, name, "dvc", lambda: DvcException("no space left on device"))
            self._wrap(patch, git.Repo, "__init__", "gitpython", lambda: git.exc.InvalidGitRepositoryError("cut"))
            for owner, names in LOCAL_WRITES:
                for name in names:
                    self._wrap(patch, owner, name, "local", _no_space)
            self._wrap_library_writes(patch)
            self._wait_for_the_peer(patch)
            with self._remote.requests(self._decide) if self._remote else contextlib.nullcontext():
                yield

    def deliver(self) -> None:
        """Make the pushes arrive that were in progress when the client gave up."""
        while self.late:
            words, options = self.late.pop()
            environment = {**os.environ, **(options.get("env") or {})}
            subprocess.run(words, cwd=options["cwd"], env=environment, capture_output=True)

    def _git(self, run: Callable[..., Completed], command: Sequence[str | Path], **options: Any) -> Completed:
        words = tuple(str(word) for word in command)

        def act() -> Completed:
            answer = run(command, **{**options, "check": False})
            if words[1] == "push" and answer.status != 0:
                self.counting = True  # the refusal from which the calls of a rollback are counted
            return checked(answer)

        def checked(answer: Completed) -> Completed:
            if answer.status != 0 and options.get("check", True):
                raise CommandFailed(" ".join(words[:3]), answer)
            return answer

        def fail() -> Completed:
            if words[1] == "push":
                self.counting = True
            return checked(Completed(128, "", "fatal: unable to access the remote: Connection reset by peer"))

        def keep_for_later() -> None:
            self.late.append((words, options))

        name = " ".join(word for word in words[1:] if not word.startswith("--"))[:90]
        return self.intercept(Call("git", name, act, fail, words, keep_for_later))  # type: ignore[no-any-return]

    def _decide(self, request: str) -> str | None:
        """Return the fault for a request that has reached the store."""
        return self.intercept(Call(WIRE, request[:90], lambda: None, lambda: "cut", (request,)))  # type: ignore[no-any-return]

    def _open_objects(self, opener: Callable[[Any], Any], repo: object) -> object:
        return _Store(opener(repo), self)

    def _wrap(
        self, patch: pytest.MonkeyPatch, owner: Any, name: str, boundary: str, error: Callable[[], Exception]
    ) -> None:  # fmt: skip
        """Wrap a function of a library where `lib.sync` calls it; other callers get the real function."""
        real = getattr(owner, name)

        @functools.wraps(real)
        def wrapper(*args: Any, **options: Any) -> Any:
            if not sys._getframe(1).f_code.co_filename.startswith(SYNC) or not _writes(name, args, options):
                return real(*args, **options)

            def act() -> Any:
                self._in_library += boundary == "dvc"
                try:
                    return real(*args, **options)
                finally:
                    self._in_library -= boundary == "dvc"

            shown = [Path(arg).name for arg in args[:2] if isinstance(arg, (str, Path))]
            half = functools.partial(_write_half, name, args) if name in HALVES else None
            return self.intercept(Call(boundary, f"{name} {' '.join(shown)}", act, _raising(error), half=half))

        patch.setattr(owner, name, wrapper)

    def _wrap_library_writes(self, patch: pytest.MonkeyPatch) -> None:
        """Wrap DVC's writes to the work tree on behalf of `lib.sync`: `.dvc` files and ignore lines."""
        real = builtins.open

        def wrapper(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            name = str(file)
            if not self._in_library or mode[0] in "rb" or not name.endswith((".dvc", ".gitignore")):
                return real(file, mode, *args, **options)
            act = functools.partial(real, file, mode, *args, **options)
            return self.intercept(Call("dvc", f"writes {Path(name).name}", act, _raising(_no_space)))

        patch.setattr(builtins, "open", wrapper)

    def _wait_for_the_peer(self, patch: pytest.MonkeyPatch) -> None:
        """Replace each sleep of `lib.sync` by the rest of the peer's work."""
        real = time.sleep

        def sleep(seconds: float) -> None:
            if not sys._getframe(1).f_code.co_filename.startswith(SYNC):
                real(seconds)
            elif self.peer is not None:
                self.peer.go_on()

        patch.setattr(time, "sleep", sleep)


class _Store:
    """A DVC remote whose methods are all wrapped."""

    def __init__(self, store: Any, injector: FaultInjector) -> None:
        self._store, self._injector = store, injector

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._store, name)
        if not callable(value):
            return value

        def wrapper(*args: Any, **options: Any) -> Any:
            shown = str(args[0])[:6] if args and isinstance(args[0], str) else ""
            act = functools.partial(value, *args, **options)
            return self._injector.intercept(Call("store", f"{name} {shown}", act, _raising(_no_answer)))

        return wrapper


WIRE = "wire"
PUBLIC_OF_DVC = ("add", "push", "pull", "fetch", "gc", "close")
LOCAL_WRITES: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (
        Path,
        ("write_text", "write_bytes", "replace", "rename", "unlink", "open", "mkdir", "rmdir", "chmod", "touch",
         "symlink_to", "hardlink_to"),
    ),
    (os, ("fsync", "replace", "rename", "unlink", "remove", "link", "symlink", "makedirs", "mkdir", "write")),
    (shutil, ("copyfile", "copy", "copy2", "copytree", "move", "rmtree")),
)  # fmt: skip
HALVES = ("write_text", "write_bytes", "copyfile")


def _writes(name: str, args: Sequence[Any], options: dict[str, Any]) -> bool:
    return name != "open" or any(letter in (options.get("mode") or (*args, "r")[1]) for letter in "wax+")


def _write_half(name: str, args: Sequence[Any]) -> None:
    """Leave the first half of a write."""
    if name == "copyfile":
        content, target = Path(args[0]).read_bytes(), Path(args[1])
    else:
        content, target = (args[1].encode() if isinstance(args[1], str) else args[1]), args[0]
    with open(target, "wb") as file:  # noqa: PTH123  Path's own methods are wrapped
        file.write(content[: len(content) // 2])


def _no_space() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


def _no_answer() -> OSError:
    return OSError(errno.ECONNRESET, "Connection reset by peer")


def _raising(error: Callable[[], Exception]) -> Callable[[], NoReturn]:
    def fail() -> NoReturn:
        raise error()

    return fail


# ── the kinds of fault ────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Kind:
    """What happens to the Nth call, and to those after it.

    `kills` runs the publication in a child process and kills it. `dies` raises `Died` at this and each later call,
    which leaves the same remotes.
    """

    name: str
    strike: Strike
    applies: Callable[[Call], bool] = lambda _call: True
    kills: bool = False
    dies: bool = False
    on_the_wire: bool = False
    """Whether HTTP requests are counted and broken, instead of operations."""
    arrives: str = ""
    """When a push in progress arrives: `before` or `after` the recovery."""


class Strike:
    """What a kind of fault does to call number N (`first`) or to a later one."""

    def __init__(
        self, first: Callable[[FaultInjector, Call], Any], later: Callable[[FaultInjector, Call], Any] | None = None
    ) -> None:
        self._first, self._later = first, later or (lambda _injector, call: call.act())

    def __call__(self, injector: FaultInjector, call: Call, *, first: bool) -> Any:
        """Break the call, or make it."""
        return (self._first if first else self._later)(injector, call)


def _kill_now(call: Call) -> NoReturn:
    os.write(2, f"{KILLED}{call.boundary}: {call.name}".encode())
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL was survived")


def _kill_before(_injector: FaultInjector, call: Call) -> NoReturn:
    _kill_now(call)


def _kill_after(_injector: FaultInjector, call: Call) -> NoReturn:
    with contextlib.suppress(Exception):
        call.act()
    _kill_now(call)


def _kill_midway(_injector: FaultInjector, call: Call) -> NoReturn:
    assert call.half is not None
    call.half()
    _kill_now(call)


class Died(BaseException):
    """The process has died: nothing that it would do from now on happens."""


def _stop(_injector: FaultInjector, _call: Call) -> NoReturn:
    raise Died


def _fail(_injector: FaultInjector, call: Call) -> Any:
    return call.fail()


def _fail_at_this_boundary(injector: FaultInjector, call: Call) -> Any:
    assert injector.broken is not None
    return call.fail() if call.boundary == injector.broken.boundary else call.act()


def _hold_back(_injector: FaultInjector, call: Call) -> Any:
    assert call.half is not None
    call.half()
    return call.fail()


def _let_the_peer_finish(injector: FaultInjector, call: Call) -> Any:
    assert injector.peer is not None
    injector.peer.go_on()
    return call.act()


def is_push(call: Call) -> bool:
    """Return whether the call updates refs of the Git remote."""
    return call.words[1:2] == ("push",)


ONCE = Kind("fails once", Strike(_fail))
ON = Kind("fails from then on", Strike(_fail, _fail))
BOUNDARY = Kind("fails with all calls of its sort", Strike(_fail, _fail_at_this_boundary))
LOST = Kind("happens and its answer is lost", Strike(lambda _injector, call: call.lose()))
LATE = Kind("arrives before the recovery", Strike(_hold_back), is_push, arrives="before")
VERY_LATE = Kind("arrives after the recovery", Strike(_hold_back), is_push, arrives="after")
LIES = Kind(
    "reports success without an effect", Strike(lambda _injector, _call: None),
    lambda call: call.boundary == "store" and call.name.startswith("upload"),
)  # fmt: skip
MEANWHILE = Kind("the peer finishes right before it", Strike(_let_the_peer_finish))
DIES = Kind("dies right before", Strike(_stop, _stop), dies=True)
KILLED_BEFORE = Kind("killed right before", Strike(_kill_before), kills=True)
KILLED_AFTER = Kind("killed right after", Strike(_kill_after), kills=True)
KILLED_MIDWAY = Kind(
    "killed midway", Strike(_kill_midway), lambda call: call.boundary == "local" and call.half is not None, kills=True
)


# ── processes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def start(action: Callable[[], object], report: Path) -> int:
    """Run an action in a child process and return its id; it exits with 0, or with 1 after an error."""
    # s3fs keeps its idle threads for the process's life once another test has used it; they hold nothing used here
    idle = ("fsspecIO", "asyncio_")
    others = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    alive = [name for name in others if not name.startswith(idle)]
    assert not alive, f"threads do not survive a fork: {alive}"
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        os.environ[MARK] = str(report)
        output = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(output, stream)
        sys.stdout = sys.stderr = os.fdopen(os.dup(output), "w")
        action()
        status = 0
    except BaseException:  # noqa: BLE001  the parent reads it
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def end(pid: int, report: Path) -> int:
    """Return the exit status of a child process (negative: its signal), after killing all that it started."""
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    mark = f"{MARK}={report}".encode()
    while left := processes_with(mark):
        for number in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(status)


class Peer:
    """Another clone's process, paused in the middle of its work until `go_on`, which returns when it has ended."""

    def __init__(self, work: Callable[[Callable[[], None]], object], report: Path) -> None:
        ready, self._ready = os.pipe()
        self._go, go = os.pipe()
        self._report = report

        def pause() -> None:
            os.write(self._ready, b"1")
            os.read(self._go, 1)

        self._pid = start(lambda: work(pause), report)
        os.close(self._ready)
        os.close(self._go)
        self._ready, self._go = ready, go
        assert os.read(ready, 1) == b"1", report.read_text(encoding="utf-8")

    def go_on(self) -> None:
        """Run the process to its end."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._go, b"1")
        while os.read(self._ready, 1):
            pass

    def finish(self) -> int:
        """Run the process to its end and return its exit status."""
        self.go_on()
        for descriptor in (self._ready, self._go):
            os.close(descriptor)
        return end(self._pid, self._report)


def publish_and_pause(clone: Path, pause: Callable[[], None]) -> None:
    """Publish the same content under another name, and pause right before the commit push."""
    with FaultInjector(replace(ONCE, strike=_pausing(pause), applies=creates_a_branch), 1, ids=THEIRS).installed():
        publish(clone, OTHER)


def recover_and_pause(clone: Path, pause: Callable[[], None]) -> None:
    """Recover dead publications, and pause right before the first object is deleted."""
    kind = replace(ONCE, strike=_pausing(pause), applies=lambda call: call.name.startswith("delete "))
    with FaultInjector(kind, 1).installed():
        recover(clone, older_than=0, say=str)


def _pausing(pause: Callable[[], None]) -> Strike:
    def strike(_injector: FaultInjector, call: Call) -> Any:
        pause()
        return call.act()

    return Strike(strike)


def creates_a_branch(call: Call) -> bool:
    """Return whether the call is the commit push of a run."""
    created = (word for word in call.words if word[0] not in "-:")
    return is_push(call) and any(f":refs/heads/{kind}-" in word for word in created for kind in KINDS)


# ── scenarios ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Scenario:
    """What the remotes contain, which other process is active, what is done, and whether its branch is refused."""

    name: str
    prepare: Callable[[Stores, DvcRemote], object] = lambda _stores, _remote: None
    peer: Callable[[Path, Callable[[], None]], object] | None = None
    refused: bool = False
    """Whether the branch is refused; calls are then counted from the refusal: those of the rollback."""
    recovers: bool = False
    """Whether faults hit the recovery of a dead publication, instead of a publication."""
    whole: bool = False
    """Whether calls are counted from the first one, although the branch is refused."""
    cold: bool = False
    """Whether the clone has never contacted the remotes: its mirror of them under `.git` must be created first."""
    branch: str = BRANCH
    """The branch that is published."""
    supersedes: tuple[str, ...] = ()
    """The branches that it replaces."""
    holds: bool = False
    """Whether the session holds its run meanwhile."""

    def publishing(self, clone: Path) -> Callable[[], Published]:
        """Return a function that publishes the run of a clone as this scenario does."""
        hold = RunLock(clone, HELD, Credentials(), say=str) if self.holds else None

        def publish_it() -> Published:
            try:
                return publish(clone, self.branch, *self.supersedes, hold=hold)
            finally:
                if hold is not None:
                    hold.release()

        return publish_it


def one_object_is_stored_already(stores: Stores, remote: DvcRemote) -> None:
    """Store an unrelated copy of one of the two objects, which no branch names."""
    content = (stores.clone / WEIGHTS[0]).read_bytes()
    remote.put(object_name(md5_of(content)), content)


def the_same_is_published(stores: Stores, _remote: DvcRemote) -> None:
    """Publish the same content from another clone."""
    publish(stores.folder / "peer", OTHER)


def another_died_before_its_push(stores: Stores, remote: DvcRemote) -> None:
    """Declare and upload the same objects from another clone, and kill it right before its commit push."""
    _die_before_the_push(stores, remote, stores.folder / "peer", OTHER, THEIRS)


def we_died_before_our_push(stores: Stores, remote: DvcRemote) -> None:
    """Declare and upload the objects from the clone itself, and kill it right before its commit push."""
    _die_before_the_push(stores, remote, stores.clone, BRANCH, OURS)


def a_checkpoint_is_published(stores: Stores, _remote: DvcRemote) -> None:
    """Publish an older checkpoint from another clone; its best weights are still the best."""
    peer = stores.folder / "peer"
    (peer / WEIGHTS[1]).write_bytes(b"older")
    publish(peer, CHECKPOINT, CHECKPOINT)


def we_died_before_cleaning_up(stores: Stores, remote: DvcRemote) -> None:
    """Replace the checkpoint, and kill the process before it deletes the objects that only the checkpoint names."""
    a_checkpoint_is_published(stores, remote)
    _die(stores, remote, lambda call: call.name.startswith("delete "), OURS, FINISHING.publishing(stores.clone))


def _die_before_the_push(stores: Stores, remote: DvcRemote, clone: Path, branch: str, ids: str) -> None:
    _die(stores, remote, creates_a_branch, ids, lambda: publish(clone, branch))


def _die(
    stores: Stores, remote: DvcRemote, before: Callable[[Call], bool], ids: str, publish_it: Callable[[], object]
) -> None:
    kind = KILLED_BEFORE if remote.survives_forks else DIES

    def run() -> None:
        with FaultInjector(replace(kind, applies=before), 1, ids=ids).installed():
            publish_it()

    if not remote.survives_forks:
        with pytest.raises(Died):
            run()
        return
    report = stores.folder / "died.txt"
    assert end(start(run, report), report) == -signal.SIGKILL, report.read_text(encoding="utf-8")


ALONE = Scenario("alone")
COLD = Scenario("alone, for the first time", cold=True)
STRANGER = Scenario("an object is stored already", one_object_is_stored_already)
PUBLISHED = Scenario("the same is published", the_same_is_published)
DEAD = Scenario("another died", another_died_before_its_push)
CONCURRENT = Scenario("another publishes", peer=publish_and_pause)
ROLLING_BACK = Scenario("another is rolled back", another_died_before_its_push, recover_and_pause)
FINISHING = Scenario("a checkpoint ends", a_checkpoint_is_published, supersedes=(CHECKPOINT,))
MOVING = replace(FINISHING, name="a checkpoint moves", branch=CHECKPOINT)
HOLDING = replace(MOVING, name="a checkpoint of a held run moves", holds=True)
WANTED = replace(MOVING, name="a checkpoint moves and another publishes the old one", peer=publish_and_pause)


def refused(scenario: Scenario, *, whole: bool = False) -> Scenario:
    """Return the scenario with a refused branch; the calls of the rollback are counted, or with `whole` all calls."""
    return replace(scenario, name=f"{scenario.name}, refused", refused=True, whole=whole)


RECOVERY = Scenario("recovery", we_died_before_our_push, recovers=True)
CLEANING_UP = replace(FINISHING, name="recovery of a clean-up", prepare=we_died_before_cleaning_up, recovers=True)
