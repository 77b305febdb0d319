"""Fault injection in the manner of SQLite: the Nth external call of a publication breaks, for every N.

`Doors` stands at every way out of the vault: git commands, operations on the DVC remote, DVC's and GitPython's own
work, and durable local writes. It numbers what passes and breaks one passage; `fault_sweeps.py` plays one scenario
with one kind of fault for every N and examines the world after each.

The Git remote is always a real one. The DVC remote is a `Shelf`: a folder here, Drive and S3 in `store_faults.py`,
where requests can be broken too, below the operations.

It cannot break what never leaves Python (memory, clocks), a write inside git, or the order of two uploads side by side:
one is made after the other here, so that a number means the same call in each run.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import functools
import hashlib
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
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, Protocol

import pytest
from conftest import ROOT, RUN, WEIGHTS, Stores, processes_with

from lib import process as commands
from lib.process import CommandFailed, Completed
from lib.remotes.credentials import Credentials
from lib.sync import Publication, Published, RunLock, recover, sync_outputs
from lib.sync import intent as journal
from lib.sync import publish as publish_module
from lib.sync import vault as vault_module
from lib.sync.stores.base import open_objects

BRANCH = "kaggle-train-detection-exp001-20250102-030405"
OTHER = "kaggle-train-detection-exp001-20250102-040506"
CHECKPOINT = "kaggle-checkpoint-detection-exp001"
HELD = "detection-exp001"
STAMP = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
OURS, THEIRS = "f" * 8, "0" * 8  # how intents begin: those of the faulted clone are settled last
SYNC = str(ROOT / "lib" / "sync")
MARK = "FAULT_SWEEP"  # in the environment of whatever a process that is killed has started
KILLED = "\nkilled at "
MANY = 400  # more calls than a publication makes

KINDS = ("kaggle-train", "kaggle-checkpoint")


def publish(clone: Path, branch: str = BRANCH, *supersedes: str, hold: RunLock | None = None) -> Published:
    """Publish the run in a clone under a branch that takes the place of others."""
    run = Publication(clone, branch, "Training of exp001\n", RUN, WEIGHTS, STAMP, supersedes=supersedes, hold=hold)
    return sync_outputs(run, say=str)


# ── the DVC remote, from behind ───────────────────────────────────────────────────────────────────────────────────────

Copies = Mapping[str, Mapping[str, bytes]]
"""Path below the DVC remote → what changes when the copy is written again → its bytes."""
Decide = Callable[[str], str | None]
"""Is told of a request that has come in, and says what goes wrong with it: nothing, or a kind of the emulator."""


class Shelf(Protocol):
    """A DVC remote as a test sees it: not through the code that is tested."""

    survives_forks: bool
    """Whether a child process may use it: what dies is then killed, else it is only stopped from doing more."""

    def connect(self, clone: Path) -> None:
        """Let a new clone use it."""

    def copies(self) -> Copies:
        """Give every stored copy, also of what no reader sees."""

    def put(self, path: str, content: bytes) -> None:
        """Store one more copy, as a stranger would."""

    def clear(self) -> None:
        """Remove everything."""

    def keep(self) -> None:
        """Remember what it holds."""

    def put_back(self) -> None:
        """Hold again what was remembered."""

    def everything(self) -> object:
        """Return all that its next user could meet, hidden things too; times and drawn names are left out."""

    def requests(self, decide: Decide, /) -> contextlib.AbstractContextManager[None]:
        """Ask about every request for as long as the block lasts."""


class FolderShelf:
    """A folder. It is remembered and put back with everything else of its machine."""

    survives_forks = True

    def __init__(self, stores: Stores) -> None:
        self._folder = stores.storage

    def connect(self, clone: Path) -> None:
        """Its address is committed."""

    def copies(self) -> Copies:
        """Walk the folder, temporary files too."""
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
        """Leave an empty folder."""
        shutil.rmtree(self._folder)
        self._folder.mkdir()

    def keep(self) -> None:
        """Do nothing: the folder is copied with the others."""

    def put_back(self) -> None:
        """Do nothing, for the same reason."""

    def everything(self) -> object:
        """Walk the folder, empty folders too."""
        return sorted((path, file.lstat().st_mode, content_of(file)) for path, file in walk(self._folder))

    def requests(self, _decide: Decide, /) -> contextlib.AbstractContextManager[None]:
        """There are none."""
        return contextlib.nullcontext()


def walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield every file and folder below a folder, with its path from the folder's parent."""
    for file in folder.rglob("*"):
        yield file.relative_to(folder.parent).as_posix(), file


def content_of(file: Path) -> bytes:
    """Return the bytes of a file; a folder has none."""
    return file.read_bytes() if file.is_file() else b""


# ── the doors ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Call:
    """One passage: what it does, what its failure looks like, and half of it where it has a middle."""

    door: str
    name: str
    act: Callable[[], Any]
    fail: Callable[[], Any]
    words: tuple[str, ...] = ()
    half: Callable[[], object] | None = None

    def lose(self) -> Any:
        """Do the work and give the answer of a failure."""
        given = self.act()
        if hasattr(given, "close"):
            given.close()
        return self.fail()


class Doors:
    """Every way out of a publication. Counts the calls that the kind of fault applies to, and breaks at number `at`."""

    def __init__(
        self,
        kind: Kind,
        at: int,
        *,
        from_refusal: bool = False,
        guest: Guest | None = None,
        ids: str = OURS,
        shelf: Shelf | None = None,
    ) -> None:
        self.kind, self.at, self.guest, self._ids, self._shelf = kind, at, guest, ids, shelf
        self.counting = not from_refusal
        self.passed: list[str] = []
        self.broken: Call | None = None
        self.late: list[tuple[tuple[str, ...], dict[str, Any]]] = []
        self._lock = threading.Lock()
        self._in_library = 0

    @property
    def reached(self) -> bool:
        """Whether the fault has happened."""
        return self.broken is not None

    def through(self, call: Call) -> Any:
        """Let a call pass, or break it."""
        with self._lock:
            counts = self.counting and (call.door == WIRE) == self.kind.on_the_wire and self.kind.applies(call)
            if counts:
                self.passed.append(f"{call.door}: {call.name}")
            first = self.broken is None and counts and len(self.passed) == self.at
            if first:
                self.broken = call
        return self.kind.strike(self, call, first=first) if self.broken is not None else call.act()

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Stand at every way out for as long as the block lasts."""
        import dvc.repo
        import git
        from dvc.exceptions import DvcException

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(publish_module, "SIDE_BY_SIDE", 1)
            patch.setattr(journal, "new_intent_id", lambda: self._ids + secrets.token_hex(4))
            run = commands.run_command
            for module in list(sys.modules.values()):
                if getattr(module, "__name__", "").startswith("lib") and getattr(module, "run_command", None) is run:
                    patch.setattr(module, "run_command", functools.partial(self._git, run))
            patch.setattr(vault_module, "open_objects", functools.partial(self._open_objects, open_objects))
            for name in ("__init__", *PUBLIC_OF_DVC):
                self._guard(patch, dvc.repo.Repo, name, "dvc", lambda: DvcException("no space left on device"))
            self._guard(patch, git.Repo, "__init__", "gitpython", lambda: git.exc.InvalidGitRepositoryError("cut"))
            for owner, names in LOCAL_WRITES:
                for name in names:
                    self._guard(patch, owner, name, "local", _no_space)
            self._guard_library_writes(patch)
            self._wait_for_the_guest(patch)
            with self._shelf.requests(self._decide) if self._shelf else contextlib.nullcontext():
                yield

    def deliver(self) -> None:
        """Let pushes arrive that were under way when their answers were given up."""
        while self.late:
            words, options = self.late.pop()
            environment = {**os.environ, **(options.get("env") or {})}
            subprocess.run(words, cwd=options["cwd"], env=environment, capture_output=True)

    def _git(self, run: Callable[..., Completed], command: Sequence[str | Path], **options: Any) -> Completed:
        words = tuple(str(word) for word in command)

        def act() -> Completed:
            answer = run(command, **{**options, "check": False})
            if words[1] == "push" and answer.status != 0:
                self.counting = True  # the refusal from which an undoing is counted
            return given(answer)

        def given(answer: Completed) -> Completed:
            if answer.status != 0 and options.get("check", True):
                raise CommandFailed(" ".join(words[:3]), answer)
            return answer

        def fail() -> Completed:
            if words[1] == "push":
                self.counting = True
            return given(Completed(128, "", "fatal: unable to access the remote: Connection reset by peer"))

        def keep_for_later() -> None:
            self.late.append((words, options))

        name = " ".join(word for word in words[1:] if not word.startswith("--"))[:90]
        return self.through(Call("git", name, act, fail, words, keep_for_later))  # type: ignore[no-any-return]

    def _decide(self, request: str) -> str | None:
        """Say what goes wrong with a request that has reached the store: here only the kind of fault can know."""
        return self.through(Call(WIRE, request[:90], lambda: None, lambda: "cut", (request,)))  # type: ignore[no-any-return]

    def _open_objects(self, opener: Callable[[Any], Any], repo: object) -> object:
        return _Store(opener(repo), self)

    def _guard(
        self, patch: pytest.MonkeyPatch, owner: Any, name: str, door: str, error: Callable[[], Exception]
    ) -> None:  # fmt: skip
        """Put a function of a library under guard where the vault calls it; for everybody else it stays."""
        real = getattr(owner, name)

        @functools.wraps(real)
        def passage(*args: Any, **options: Any) -> Any:
            if not sys._getframe(1).f_code.co_filename.startswith(SYNC) or not _writes(name, args, options):
                return real(*args, **options)

            def act() -> Any:
                self._in_library += door == "dvc"
                try:
                    return real(*args, **options)
                finally:
                    self._in_library -= door == "dvc"

            shown = [Path(arg).name for arg in args[:2] if isinstance(arg, (str, Path))]
            half = functools.partial(_write_half, name, args) if name in HALVES else None
            return self.through(Call(door, f"{name} {' '.join(shown)}", act, _raising(error), half=half))

        patch.setattr(owner, name, passage)

    def _guard_library_writes(self, patch: pytest.MonkeyPatch) -> None:
        """Guard what DVC writes into the work tree while it works for the vault: `.dvc` files and ignore lines."""
        real = builtins.open

        def passage(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            name = str(file)
            if not self._in_library or mode[0] in "rb" or not name.endswith((".dvc", ".gitignore")):
                return real(file, mode, *args, **options)
            act = functools.partial(real, file, mode, *args, **options)
            return self.through(Call("dvc", f"writes {Path(name).name}", act, _raising(_no_space)))

        patch.setattr(builtins, "open", passage)

    def _wait_for_the_guest(self, patch: pytest.MonkeyPatch) -> None:
        """Who waits gives the guest its time: nothing here sleeps."""
        real = time.sleep

        def sleep(seconds: float) -> None:
            if not sys._getframe(1).f_code.co_filename.startswith(SYNC):
                real(seconds)
            elif self.guest is not None:
                self.guest.go_on()

        patch.setattr(time, "sleep", sleep)


class _Store:
    """The DVC remote behind a door, whatever methods it has."""

    def __init__(self, store: Any, doors: Doors) -> None:
        self._store, self._doors = store, doors

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._store, name)
        if not callable(value):
            return value

        def passage(*args: Any, **options: Any) -> Any:
            shown = str(args[0])[:6] if args and isinstance(args[0], str) else ""
            act = functools.partial(value, *args, **options)
            return self._doors.through(Call("store", f"{name} {shown}", act, _raising(_no_answer)))

        return passage


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
    """Leave what a write leaves that was cut in the middle."""
    if name == "copyfile":
        content, target = Path(args[0]).read_bytes(), Path(args[1])
    else:
        content, target = (args[1].encode() if isinstance(args[1], str) else args[1]), args[0]
    with open(target, "wb") as file:  # noqa: PTH123  Path's own methods are guarded
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

    `kills` ends the process: it is played in a child. `dies` lets nothing more of it happen, which comes to the same.
    """

    name: str
    strike: Strike
    applies: Callable[[Call], bool] = lambda _call: True
    kills: bool = False
    dies: bool = False
    on_the_wire: bool = False
    """Whether it is requests that are counted and broken, or operations."""
    arrives: str = ""
    """When a push that was under way arrives: before or after the recovery."""


class Strike:
    """What a kind of fault does to a call that is number N (`first`) or a later one."""

    def __init__(self, first: Callable[[Doors, Call], Any], later: Callable[[Doors, Call], Any] | None = None) -> None:
        self._first, self._later = first, later or (lambda _doors, call: call.act())

    def __call__(self, doors: Doors, call: Call, *, first: bool) -> Any:
        """Break the call, or let it pass."""
        return (self._first if first else self._later)(doors, call)


def _kill_now(call: Call) -> NoReturn:
    os.write(2, f"{KILLED}{call.door}: {call.name}".encode())
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL was survived")


def _kill_before(_doors: Doors, call: Call) -> NoReturn:
    _kill_now(call)


def _kill_after(_doors: Doors, call: Call) -> NoReturn:
    with contextlib.suppress(Exception):
        call.act()
    _kill_now(call)


def _kill_midway(_doors: Doors, call: Call) -> NoReturn:
    assert call.half is not None
    call.half()
    _kill_now(call)


class Died(BaseException):
    """The process has ended here: nothing that it would do from now on happens."""


def _stop(_doors: Doors, _call: Call) -> NoReturn:
    raise Died


def _fail_at_this_door(doors: Doors, call: Call) -> Any:
    assert doors.broken is not None
    return call.fail() if call.door == doors.broken.door else call.act()


def _hold_back(_doors: Doors, call: Call) -> Any:
    assert call.half is not None
    call.half()
    return call.fail()


def _let_the_guest_go_on(doors: Doors, call: Call) -> Any:
    assert doors.guest is not None
    doors.guest.go_on()
    return call.act()


def is_push(call: Call) -> bool:
    """Whether it moves refs of the Git remote."""
    return call.words[1:2] == ("push",)


ONCE = Kind("fails once", Strike(lambda _doors, call: call.fail()))
ON = Kind("fails from then on", Strike(lambda _doors, call: call.fail(), lambda _doors, call: call.fail()))
DOOR = Kind("fails with all of its door", Strike(lambda _doors, call: call.fail(), _fail_at_this_door))
LOST = Kind("happens and its answer is lost", Strike(lambda _doors, call: call.lose()))
LATE = Kind("arrives before the recovery", Strike(_hold_back), is_push, arrives="before")
VERY_LATE = Kind("arrives after the recovery", Strike(_hold_back), is_push, arrives="after")
LIES = Kind(
    "says it happened", Strike(lambda _doors, _call: None),
    lambda call: call.door == "store" and call.name.startswith("upload"),
)  # fmt: skip
MEANWHILE = Kind("the other goes on right before it", Strike(_let_the_guest_go_on))
DIES = Kind("dies right before", Strike(_stop, _stop), dies=True)
KILLED_BEFORE = Kind("killed right before", Strike(_kill_before), kills=True)
KILLED_AFTER = Kind("killed right after", Strike(_kill_after), kills=True)
KILLED_MIDWAY = Kind(
    "killed midway", Strike(_kill_midway), lambda call: call.door == "local" and call.half is not None, kills=True
)


# ── processes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def start(action: Callable[[], object], report: Path) -> int:
    """Run an action in a child of its own and give its number; it exits with 0, or 1 after an error."""
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
    """Return the exit status of a child (negative: its signal) after the end of everything that it started."""
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


class Guest:
    """Another clone's process, held in the middle of its work until `go_on`; it is over when that returns."""

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
        """Let it work to its end."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._go, b"1")
        while os.read(self._ready, 1):
            pass

    def finish(self) -> int:
        """Let it work to its end and give its exit status."""
        self.go_on()
        for descriptor in (self._ready, self._go):
            os.close(descriptor)
        return end(self._pid, self._report)


def publish_and_pause(clone: Path, pause: Callable[[], None]) -> None:
    """Publish the same content under another name, and pause right before the commit push."""
    with Doors(replace(ONCE, strike=_pausing(pause), applies=creates_a_branch), 1, ids=THEIRS).installed():
        publish(clone, OTHER)


def recover_and_pause(clone: Path, pause: Callable[[], None]) -> None:
    """Undo what the dead have left, and pause right before the first object is deleted."""
    kind = replace(ONCE, strike=_pausing(pause), applies=lambda call: call.name.startswith("delete "))
    with Doors(kind, 1).installed():
        recover(clone, older_than=0, say=str)


def _pausing(pause: Callable[[], None]) -> Strike:
    def strike(_doors: Doors, call: Call) -> Any:
        pause()
        return call.act()

    return Strike(strike)


def creates_a_branch(call: Call) -> bool:
    """Whether it is the commit push of a run."""
    created = (word for word in call.words if word[0] not in "-:")
    return is_push(call) and any(f":refs/heads/{kind}-" in word for word in created for kind in KINDS)


# ── scenarios ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Scenario:
    """What stands on the remotes, who else works there, what is done, and whether its branch is refused."""

    name: str
    prepare: Callable[[Stores, Shelf], object] = lambda _stores, _shelf: None
    guest: Callable[[Path, Callable[[], None]], object] | None = None
    refused: bool = False
    """The branch is refused, and calls are counted from there: the undoing."""
    recovers: bool = False
    """Not the publication is broken but the recovery of one that died."""
    whole: bool = False
    """Refused, but counted from the first call."""
    cold: bool = False
    """The clone has never spoken to the remotes: what it keeps of them under `.git` must be made first."""
    branch: str = BRANCH
    """What is published."""
    supersedes: tuple[str, ...] = ()
    """The branches that it takes the place of."""
    holds: bool = False
    """The session holds its run meanwhile."""

    def publishing(self, clone: Path) -> Callable[[], Published]:
        """Give what publishes the run of a clone as it is published here."""
        hold = RunLock(clone, HELD, Credentials(), say=str) if self.holds else None

        def publish_it() -> Published:
            try:
                return publish(clone, self.branch, *self.supersedes, hold=hold)
            finally:
                if hold is not None:
                    hold.release()

        return publish_it


def one_object_stood_there(stores: Stores, shelf: Shelf) -> None:
    """Put a stranger's copy of one of the two objects there, which no branch names."""
    content = (stores.clone / WEIGHTS[0]).read_bytes()
    shelf.put(object_name(md5_of(content)), content)


def the_same_is_published(stores: Stores, _shelf: Shelf) -> None:
    """Let another clone publish the same content."""
    publish(stores.folder / "guest", OTHER)


def another_died_before_its_push(stores: Stores, shelf: Shelf) -> None:
    """Let another clone declare and send the same objects, and kill it right before its branch."""
    _die_before_the_push(stores, shelf, stores.folder / "guest", OTHER, THEIRS)


def we_died_before_our_push(stores: Stores, shelf: Shelf) -> None:
    """Let the clone itself do so: its objects and its intent stand there."""
    _die_before_the_push(stores, shelf, stores.clone, BRANCH, OURS)


def a_checkpoint_stands(stores: Stores, _shelf: Shelf) -> None:
    """Let another clone publish an older checkpoint; its best weights are still the best."""
    guest = stores.folder / "guest"
    (guest / WEIGHTS[1]).write_bytes(b"older")
    publish(guest, CHECKPOINT, CHECKPOINT)


def we_died_before_cleaning_up(stores: Stores, shelf: Shelf) -> None:
    """Let the clone publish in place of the checkpoint, and die before it deletes what only that one had."""
    a_checkpoint_stands(stores, shelf)
    _die(stores, shelf, lambda call: call.name.startswith("delete "), OURS, FINISHING.publishing(stores.clone))


def _die_before_the_push(stores: Stores, shelf: Shelf, clone: Path, branch: str, ids: str) -> None:
    _die(stores, shelf, creates_a_branch, ids, lambda: publish(clone, branch))


def _die(
    stores: Stores, shelf: Shelf, before: Callable[[Call], bool], ids: str, publish_it: Callable[[], object]
) -> None:
    kind = KILLED_BEFORE if shelf.survives_forks else DIES

    def play() -> None:
        with Doors(replace(kind, applies=before), 1, ids=ids).installed():
            publish_it()

    if not shelf.survives_forks:
        with pytest.raises(Died):
            play()
        return
    report = stores.folder / "died.txt"
    assert end(start(play, report), report) == -signal.SIGKILL, report.read_text(encoding="utf-8")


ALONE = Scenario("alone")
COLD = Scenario("alone, for the first time", cold=True)
STRANGER = Scenario("an object stood there", one_object_stood_there)
PUBLISHED = Scenario("the same is published", the_same_is_published)
DEAD = Scenario("another died", another_died_before_its_push)
BESIDE = Scenario("another publishes", guest=publish_and_pause)
CLEANING = Scenario("another is undone", another_died_before_its_push, recover_and_pause)
FINISHING = Scenario("a checkpoint ends", a_checkpoint_stands, supersedes=(CHECKPOINT,))
MOVING = replace(FINISHING, name="a checkpoint moves", branch=CHECKPOINT)
HOLDING = replace(MOVING, name="a checkpoint of a held run moves", holds=True)
WANTED = replace(MOVING, name="a checkpoint moves and another publishes the old one", guest=publish_and_pause)


def refused(scenario: Scenario, *, whole: bool = False) -> Scenario:
    """Give the scenario in which the branch is refused: what is counted is the undoing, or all with `whole`."""
    return replace(scenario, name=f"{scenario.name}, refused", refused=True, whole=whole)


RECOVERY = Scenario("recovery", we_died_before_our_push, recovers=True)
SWEEPING = replace(FINISHING, name="recovery of a clean-up", prepare=we_died_before_cleaning_up, recovers=True)


# ── names of objects ──────────────────────────────────────────────────────────────────────────────────────────────────


def md5_of(content: bytes) -> str:
    """Give the name of an object by its content."""
    return hashlib.md5(content).hexdigest()


def object_name(md5: str) -> str:
    """Give the path of an object below the DVC remote."""
    return f"files/md5/{md5[:2]}/{md5[2:]}"
