"""Claims on the transaction under interleaving: the real code on real remotes, one request of one actor at a time.

Three actors, each a clone with its own thread, train two runs with checkpoints, publish without a run, recover and
check. Before each request to a remote the thread stops until it receives the baton; the request may then also fail,
lose its answer, be a push that arrives much later, or never happen because the actor dies. The thread of a dead actor
unwinds without any further request, which leaves the remotes as SIGKILL does. A lease expires exactly when its holder
has died, has ended or is suspended, so that no clock is needed.

Left out, since the protocol does not promise it: an actor that is suspended right before it deletes, and two late
pushes of one call (the creation of a run's ref that arrives after the ref's whole life, and then the next one).

`protocol_model.py` explores the same steps exhaustively, without the code; this searches at random, in the code.
SYNC_EXAMPLES=1000 searches longer.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import pytest
from conftest import RUN, WEIGHTS, Stores, run_git
from hypothesis import HealthCheck, Phase, settings, stateful
from publications import STAMP, md5_of, named_by

from lib import sync
from lib.errors import DvcPushError, GitPushError, RunError
from lib.remotes import repository as repository_module
from lib.remotes.credentials import Credentials
from lib.sync import CheckpointPublisher, Publication, Published, RunLock
from lib.sync import lock as lock_module
from lib.sync import publish as publish_module
from lib.sync import remotes as remotes_module
from lib.sync.refs import Refs, RefUpdate, SeenRun
from lib.sync.remotes import Remotes
from lib.sync.stores.base import StoredCopy
from lib.sync.stores.folder import FolderObjects

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of DVC's own

LONG = 60.0  # seconds; one request may take this long on a slow machine
ACTORS = ("one", "two", "three")
CONTENTS = ("ab", "bc", "ba")
"""The two files that each actor publishes, as letters. All share b; the first and the last are the same."""
RUNS = ("exp1", "exp2")
Switch = Callable[[pytest.MonkeyPatch], None]
FAULTS = ("refused", "lost", "late")
"""A request fails, loses its answer, or is a push that fails and arrives much later."""

answer: Callable[..., None] = RunLock._answer


class Died(BaseException):
    """The actor's process has died."""


class Stuck(AssertionError):
    """An actor waits for ever."""


class Current(threading.local):
    """The actor whose thread this is; None in the thread of the test."""

    actor: Actor | None = None


CURRENT = Current()


class Timeless:
    """Replaces `time` in the transaction: an actor that sleeps hands the baton on, and its clock advances by 1."""

    @staticmethod
    def monotonic() -> float:
        """Return the number of times that the actor has slept."""
        return CURRENT.actor.clock if CURRENT.actor else 0.0

    @staticmethod
    def sleep(_seconds: float) -> None:
        """Stop the actor, so that others continue."""
        if CURRENT.actor:
            CURRENT.actor.stop("sleep")
            CURRENT.actor.clock += 1


class Actor:
    """A clone and the call in progress in it, if any."""

    def __init__(self, name: str, clone: Path) -> None:
        self.name, self.clone = name, clone
        self.run: Publication | None = None
        self.outcome: object = None
        self.at = ""
        """The request that the actor makes when it receives the baton; empty if no call is in progress."""
        self.calls, self.clock = 0, 0.0
        self.locks: list[RunLock] = []
        """The locks of the call."""
        self.is_inside = self.is_asleep = self.was_asleep = self.was_late = False
        self._dead = False
        self._fault = ""
        self._baton, self._stopped = threading.Event(), threading.Event()

    def start(self, call: Callable[[], object]) -> None:
        """Begin the call, up to its first request."""

        def work() -> None:
            CURRENT.actor = self
            try:
                self.outcome = call()
            except BaseException as error:  # noqa: BLE001  checked when the call has ended
                self.outcome = error
            finally:
                for lock in self.locks:
                    lock._unlock_file()  # as the system does when a process dies
                self.at = ""
                self._stopped.set()

        self.outcome, self._dead, self.at, self.locks = None, False, "start", []
        self.is_asleep = self.was_asleep = self.was_late = False
        self.calls += 1
        self._stopped.clear()
        threading.Thread(target=work, name=self.name, daemon=True).start()
        self._wait()

    def go_on(self, fault: str = "") -> None:
        """Make the actor's next request."""
        self._fault = fault
        self._stopped.clear()
        self._baton.set()
        self._wait()

    def die(self) -> None:
        """Kill the actor before its next request."""
        self._dead = True
        while self.at:
            self.go_on()

    def stop(self, request: str) -> str:
        """Wait for the baton, in the actor's own thread, and return the fault of the request."""
        if not self._dead:
            self.at = request
            self._stopped.set()
            assert self._baton.wait(10 * LONG)
            self._baton.clear()
        if self._dead:
            raise Died
        return self._fault

    def _wait(self) -> None:
        assert self._stopped.wait(LONG), f"{self.name} hangs after {self.at}"


class World:
    """Both remotes, the actors, and the pushes that are still on their way."""

    def __init__(self, stores: Stores) -> None:
        self.stores = stores
        self.actors = {name: Actor(name, stores.clone_again(name)) for name in ACTORS}
        self.sessions: dict[str, tuple[Actor, int]] = {}
        """{session: the actor and its call}."""
        self.late: list[Callable[[], object]] = []
        self.strangers: dict[Path, int] = {}
        """{path: modification time}."""
        self.may_stay: set[Path] = set()
        """Objects that a session stored after it was taken over."""
        self.log: list[str] = []
        self._branches = 0
        self._named = cache(partial(named_by, stores.origin))

    def begin(self) -> None:
        """Reset everything but the clones."""
        for ref in self.stores.refs():
            run_git("update-ref", "-d", ref, cwd=self.stores.origin)
        shutil.rmtree(self.stores.storage)
        self.stores.storage.mkdir()
        self.late, self.strangers, self.log = [], {}, []
        self.may_stay = set()
        for actor in self.actors.values():
            actor.run = None
            shutil.rmtree(actor.clone / "artifacts", ignore_errors=True)

    # ── steps ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def begin_call(self, name: str, what: str, call: Callable[[Actor], object]) -> None:
        """Begin a call of an idle actor."""
        self.log.append(f"{name} {what}")
        self.actors[name].start(partial(call, self.actors[name]))
        self._check_outcome(self.actors[name])

    def publish(self, name: str, content: str) -> None:
        """Begin to publish files of this content, under a new branch and without a run."""
        self._write(name, content)
        self.retry(name)

    def train(self, name: str, run: str, checkpoints: str, content: str = "") -> None:
        """Begin a session: a checkpoint for each letter, then the publication of `content`, or none."""
        self._write(name, content or "--")
        self.begin_call(name, f"trains {run}: {checkpoints} {content}", partial(_train, run, checkpoints, content))

    def retry(self, name: str) -> None:
        """Begin to publish the actor's files, once more if it has tried before."""
        run = self.actors[name].run
        assert run is not None
        self.begin_call(name, f"publishes {run.branch}", lambda _: sync.sync_outputs(run, say=str, progress=False))

    def recover(self, name: str) -> None:
        """Begin to recover dead sessions."""
        self.begin_call(name, "recovers", lambda actor: sync.recover(actor.clone, say=str))

    def look(self, name: str) -> None:
        """Begin to check both remotes."""
        self.begin_call(name, "checks", lambda actor: sync.check(actor.clone))

    def _write(self, name: str, content: str) -> None:
        actor = self.actors[name]
        self._branches += 1
        _write_weights(actor.clone / RUN, content)
        branch = f"kaggle-train-{name}-{self._branches}"
        actor.run = Publication(actor.clone, branch, "Training\n", RUN, WEIGHTS, STAMP)

    def step(self, name: str, fault: str = "") -> None:
        """Make one actor's next request."""
        actor = self.actors[name]
        self.log.append(f"{name}: {actor.at} {fault}")
        actor.go_on(fault)
        self._check_outcome(actor)

    def run_to(self, name: str, request: str, times: str = "1") -> None:
        """Continue one actor until it is about to make a request for the `times`-th time."""
        for turn in range(int(times)):
            if turn:
                self.step(name)
            for _ in range(100):
                if self.actors[name].at in (request, ""):
                    break
                self.step(name)
            if self.actors[name].at != request:
                raise Stuck(f"{name} never reaches {request!r}:\n{self}")

    def commit(self, name: str) -> None:
        """Publish up to the commit push."""
        self.publish(name, "ab")
        self.run_to(name, "push", "3")  # it has taken the run, and has declared

    def clean_up(self, name: str) -> None:
        """Recover up to the deletion of the first dead run's ref."""
        self.recover(name)
        self.run_to(name, "delete", "2")
        self.run_to(name, "push")
        self.step(name)

    def sweep(self, name: str, living: str) -> None:
        """Recover up to the sweep, with the answer of one that lives."""
        self.recover(name)
        self.run_to(name, "sleep")
        self.answer(living)
        self.run_to(name, "flat")

    def for_a_while(self, name: str) -> None:
        """Continue one actor until its call ends, or for 60 requests if it waits."""
        for _ in range(60):
            if self.actors[name].at:
                self.step(name)

    def answer(self, name: str) -> None:
        """Let the holder's poller look for a question once, unless a push of the run is in progress."""
        self.log.append(f"{name} looks for a question")
        for lock in self.actors[name].locks:
            if lock._pushing.acquire(blocking=False):
                ended = SimpleNamespace(wait=partial(next, iter((False, True))), is_set=bool)
                answer(lock, ended)
                lock._pushing.release()

    def die(self, name: str) -> None:
        """Kill an actor; one that is uploading leaves half a file."""
        self.log.append(f"{name} dies before {self.actors[name].at}")
        self.actors[name].die()

    def suspend(self, name: str) -> None:
        """Suspend an actor until `wake`, unless it is about to delete."""
        if self.actors[name].at != "delete":
            self.log.append(f"{name} is suspended before {self.actors[name].at}")
            self.actors[name].is_asleep = self.actors[name].was_asleep = True

    def wake(self, _name: str = "") -> None:
        """Let all actors continue."""
        for actor in self.actors.values():
            actor.is_asleep = False

    def working(self) -> list[str]:
        """Return the names of the actors with a call in progress that are not suspended."""
        return [name for name, actor in self.actors.items() if actor.at and not actor.is_asleep]

    def play(self, steps: str) -> None:
        """Call methods, given as text: their names and their arguments."""
        for step in steps.split(", "):
            method, *words = step.split()
            getattr(self, method)(*words)

    def finish(self) -> None:
        """Finish all calls, then recover until nothing is left, and check that all is clean."""
        self._all_end()
        for name in [name for name, actor in self.actors.items() if not actor.at][:1]:  # takes over the suspended ones
            self.recover(name)
            self._all_end()
        self.wake()
        self._all_end()
        for name in ACTORS:
            self.recover(name)
            self._all_end()
        self.check_at_rest()

    def _all_end(self) -> None:
        for _ in range(150):
            for name in self.working():
                self.step(name)
                self.check()
            if not self.working():
                return
        raise Stuck(f"no call ends:\n{self}")

    def arrive(self) -> None:
        """Make the oldest late push arrive."""
        self.log.append("a late push arrives")
        with suppress(RunError):
            self.late.pop(0)()

    def close(self) -> None:
        """Kill all actors, so that no thread is left."""
        for actor in self.actors.values():
            if actor.at:
                actor.die()

    def push_by_hand(self, letter: str) -> None:
        """Push a branch that names an object, as a person does after `dvc push` has found it there."""
        clone, file = self.actors["two"].clone, f"{letter}.pt.dvc"
        (clone / file).write_text(f"outs:\n- md5: {md5_of(letter.encode() * 100)}\n  size: 100\n  path: x\n")
        run_git("add", file, cwd=clone)
        run_git("commit", "--quiet", "--message=model", cwd=clone)
        run_git("push", "--quiet", "origin", f"HEAD:refs/heads/by-hand-{letter}", cwd=clone)
        run_git("reset", "--quiet", "--hard", "HEAD^", cwd=clone)

    def store_strange_object(self, letter: str) -> None:
        """Store an object as `dvc push` does."""
        content = letter.encode() * 100
        path = self.stores.object_path(md5_of(content))
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            self.strangers[path] = path.stat().st_mtime_ns

    # ── checks ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def __str__(self) -> str:
        return "\n".join(self.log)

    def is_alive(self, session: str) -> bool:
        """Return whether the call of a session is in progress, and is not suspended."""
        actor, call = self.sessions[session]
        return actor.calls == call and bool(actor.at) and not actor.is_asleep

    def _check_outcome(self, actor: Actor) -> None:
        """Check that the outcome of an actor's call is true."""
        if actor.at:
            return
        self.log.append(f"{actor.name} ends: {type(actor.outcome).__name__}")
        outcome, heads = actor.outcome, self.stores.refs()
        if isinstance(outcome, sync.Checked):
            known = [path.parent.name + path.name for path in (*self.strangers, *self.may_stay)]
            for found in outcome.findings:
                is_known = found.kind == "unnamed" and any(oid in found.what for oid in known)
                assert is_known or not found.is_wrong, f"it reports that {found.what}:\n{self}"
        elif isinstance(outcome, Published):
            assert f"refs/heads/{outcome.branch}" in heads, f"it reports a publication that is not there:\n{self}"
        elif isinstance(outcome, RunError) and "everything is rolled back" in str(outcome):
            there = actor.run is not None and f"refs/heads/{actor.run.branch}" in heads
            assert not there, f"it reports a rollback, but the branch is there:\n{self}"
        elif isinstance(outcome, BaseException) and not isinstance(outcome, RunError | Died):
            raise outcome

    def named(self) -> dict[Path, tuple[str, str]]:
        """Return the stored files that branches name, with their MD5 and, for a checkpoint's, their identity."""
        heads = (commit for ref, commit in self.stores.refs().items() if ref.startswith("refs/heads/"))
        return {self.stores.storage / path: what for commit in heads for path, what in self._named(commit).items()}

    def check(self) -> None:
        """Check the promises that hold at any moment."""
        for path, (oid, second) in self.named().items():
            assert path.is_file(), f"a visible branch lacks {path.name}:\n{self}"
            assert md5_of(path.read_bytes()) == oid, f"{path.name} is damaged:\n{self}"
            assert second in ("", f"{path.stat().st_mtime:.0f}"), f"{path.name} is another copy:\n{self}"
        for path, written in self.strangers.items():
            assert path.is_file(), f"a stranger's object is lost:\n{self}"
            assert path.stat().st_mtime_ns == written, f"a stranger's object was written again:\n{self}"

    def check_at_rest(self) -> None:
        """Check the promises that hold after recovery."""
        self.check()
        assert self.stores.runs() == [], f"a run's ref is left:\n{self}"
        allowed = {*self.named(), *self.strangers, *self.may_stay}
        left = {self.stores.storage / name for name in self.stores.objects()} - allowed
        assert not left, f"nothing names {left}:\n{self}"


def _write_weights(folder: Path, content: str) -> None:
    for path, letter in zip(WEIGHTS, content, strict=True):
        file = folder / Path(path).relative_to(RUN)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(letter.encode() * 100)


def _train(run: str, checkpoints: str, content: str, actor: Actor) -> object:
    """Train as the notebook does: a failed checkpoint stops nothing, and a failed publication is tried once more."""
    lock = RunLock(Refs(actor.clone, Credentials()), run, say=str)
    publication, copy = actor.run, actor.clone.with_suffix(".copy")
    assert publication is not None
    lock.take()
    try:
        with sync.open_remotes(actor.clone, Credentials()) as remotes, suppress(RunError):
            publisher = CheckpointPublisher(remotes, lock, str)
            for letter in checkpoints:
                _write_weights(copy, letter + "c")
                with suppress(RunError):
                    publisher.publish(Publication(actor.clone, run, "", RUN, WEIGHTS, STAMP, source=copy), {})
            publisher.end()
        if content:
            held = Publication(actor.clone, publication.branch, "Training\n", RUN, WEIGHTS, STAMP, hold=lock)
            try:
                return sync.sync_outputs(held, say=str, progress=False)
            except RunError:
                return sync.sync_outputs(held, say=str, progress=False)
    finally:
        lock.release()
    return None


@contextmanager
def stopping_at_requests(world: World) -> Iterator[None]:  # noqa: C901  a wrapper a seam
    """Stop the actors of the world before each request of the transaction to its two remotes."""

    def wrap(kind: type[Any], request: str, error: type[RunError]) -> None:
        real = getattr(kind, request)

        def wrapper(self: Any, *words: Any, **options: Any) -> Any:
            actor = CURRENT.actor
            if actor is None or actor.is_inside:
                return real(self, *words, **options)
            try:
                fault = actor.stop(request)
            except Died:
                if request == "create":
                    _leave_half_a_file(self, *words)
                raise
            if request == "create":
                _note_late_copy(world, actor, words[0])
            if fault == "late" and request == "push" and not actor.was_late:
                actor.was_late = True
                world.late.append(lambda: real(self, *words, **options))
            if fault in ("refused", "late"):
                raise error(f"{request} was refused.")
            actor.is_inside = True  # a request that makes others is one here
            try:
                found = real(self, *words, **options)
            finally:
                actor.is_inside = False
            if fault == "lost":
                raise error(f"the answer to {request} was lost.")
            return found

        patch.setattr(kind, request, wrapper)

    def new_session(_bytes: int) -> str:
        assert CURRENT.actor is not None
        session = f"{len(world.sessions):016x}"
        world.sessions[session] = (CURRENT.actor, CURRENT.actor.calls)
        return session

    def lock_file(lock: RunLock, real: Callable[[RunLock], bool] = RunLock._lock_file) -> bool:
        assert CURRENT.actor is not None
        CURRENT.actor.locks.append(lock)
        return real(lock)

    def lease(run: SeenRun) -> float:
        return float("inf") if run.record and world.is_alive(run.record.session) else 1

    def pool(_workers: int, **_: object) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, initializer=setattr, initargs=(CURRENT, "actor", CURRENT.actor))

    with pytest.MonkeyPatch.context() as patch:
        for request in ("push", "list_refs", "read_runs", "named_objects", "read_files",
                        "read_files_of_all", "bring"):  # fmt: skip
            wrap(Refs, request, GitPushError)
        for request in ("create", "find", "delete", "flat", "survey"):
            wrap(FolderObjects, request, DvcPushError)
        for module in (lock_module, publish_module, import_module("lib.sync.recover")):
            patch.setattr(module, "time", Timeless)
        patch.setattr(lock_module, "secrets", SimpleNamespace(token_hex=new_session))
        patch.setattr(lock_module, "atexit", SimpleNamespace(register=id, unregister=id))
        for module in (publish_module, remotes_module):
            patch.setattr(module, "ThreadPoolExecutor", pool)
        patch.setattr(repository_module, "PAUSES", ())
        patch.setattr(FolderObjects, "limits", lambda *_: "")
        patch.setattr(RunLock, "_answer", lambda *_: None)  # its looks are steps of the test
        patch.setattr(RunLock, "_lock_file", lock_file)
        patch.setattr(SeenRun, "lease", property(lease))
        yield


def _leave_half_a_file(store: FolderObjects, path: str, source: Path, identity: str, *_: object) -> None:
    part = store._part(path, identity)
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(source.read_bytes()[:50])


def _note_late_copy(world: World, actor: Actor, path: str) -> None:
    """Note an object that is stored by a session which was suspended and taken over: it may stay."""
    tried = {commit for lock in actor.locks for commit in lock._tried}
    if actor.was_asleep and "/" in path and tried.isdisjoint(world.stores.refs().values()):
        world.may_stay.add(world.stores.storage / path)


@pytest.fixture
def world(stores: Stores) -> Iterator[World]:
    """Yield three actors that stop before each request."""
    world = World(stores)
    world.begin()
    with stopping_at_requests(world):
        yield world
        world.close()


# ── at random ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Interleavings(stateful.RuleBasedStateMachine):
    """Random steps of all actors, in random order."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.world.begin()

    @stateful.initialize(letter=st.sampled_from("-abc"), pauses=st.sampled_from([(), (0.0,)]))
    def a_stranger_was_here(self, letter: str, pauses: tuple[float, ...]) -> None:
        """Store a stranger's object, or none; a failed push is repeated that often."""
        pytest.MonkeyPatch().setattr(repository_module, "PAUSES", pauses)
        self.world.store_strange_object(letter)

    @stateful.rule(
        first=st.sampled_from(ACTORS),
        second=st.sampled_from(ACTORS),
        call=st.sampled_from(["publish", "publish", "train", "train", "train", "retry", "recover", "check"]),
        run=st.sampled_from(RUNS),
        checkpoints=st.sampled_from(["", "x", "xy"]),
        finishes=st.booleans(),
        times=st.tuples(st.integers(1, 12), st.integers(0, 12)),
    )
    def go_on(
        self, first: str, second: str, call: str, run: str, checkpoints: str, finishes: bool, times: tuple[int, int]
    ) -> None:
        """Make a few requests of one actor, then of another; an idle actor begins a call."""
        for name, count in zip((first, second), times, strict=True):
            content, actor = CONTENTS[ACTORS.index(name)], self.world.actors[name]
            if not actor.at:
                if call == "recover":
                    self.world.recover(name)
                elif call == "check":
                    self.world.look(name)
                elif call == "train":
                    self.world.train(name, run, checkpoints, content if finishes else "")
                elif call == "retry" and actor.run is not None:
                    self.world.retry(name)
                else:
                    self.world.publish(name, content)
            for _ in range(count):
                if name in self.world.working():
                    self.world.step(name)
                    self.world.check()

    @stateful.precondition(lambda self: self.world.working())
    @stateful.rule(what=st.sampled_from(["die", "suspend", "wake", "answer", *FAULTS]), turn=st.integers(0, 2))
    def something_happens(self, what: str, turn: int) -> None:
        """Kill, suspend or wake an actor, let it look for a question, or make a request of it with a fault."""
        names = self.world.working()
        name = names[turn % len(names)]
        if what in FAULTS:
            self.world.step(name, what)
        else:
            getattr(self.world, what)(name)

    @stateful.precondition(lambda self: self.world.late)
    @stateful.rule()
    def a_late_push_arrives(self) -> None:
        """Make a delayed push arrive."""
        self.world.arrive()

    @stateful.invariant()
    def promises_hold(self) -> None:
        """Check the promises that hold at any moment."""
        self.world.check()

    def teardown(self) -> None:
        """Finish all calls and recover, then make every late push arrive, which must change nothing."""
        try:
            self.world.finish()
            refs = _heads(self.world)
            while self.world.late:
                self.world.arrive()
            assert _heads(self.world) == refs
            self.world.finish()
        finally:
            self.world.close()


def _heads(world: World) -> dict[str, str]:
    return {ref: commit for ref, commit in world.stores.refs().items() if ref.startswith("refs/heads/")}


@pytest.mark.parametrize("examples", [4, pytest.param(24, marks=pytest.mark.slow)])
def test_no_order_of_requests_deaths_and_faults_breaks_a_promise(world: World, examples: int) -> None:
    """Two files each, one of them shared; a failure prints the requests that led to it."""
    examples = int(os.environ.get("SYNC_EXAMPLES", examples))

    class Search(Interleavings):
        pass

    Search.world = world
    stateful.run_state_machine_as_test(
        Search,
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            derandomize="SYNC_EXAMPLES" not in os.environ,
            database=None,
            phases=[Phase.generate],  # a failure prints its requests; shrinking it would take an hour
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_publication_that_waits_for_a_dead_one_repeats_a_recovery_that_failed(world: World) -> None:
    """It would wait for its own session, which holds the dead run's ref since the failure and has ended."""
    world.play("commit three, die three, publish one ab, run_to one named_objects, step one refused, for_a_while one")
    assert isinstance(world.actors["one"].outcome, Published), str(world)
    world.finish()


# ── with a rule switched off ──────────────────────────────────────────────────────────────────────────────────────────


def change_records(patch: pytest.MonkeyPatch, **values: object) -> None:
    """Write these values into every record."""
    push = RunLock.push
    patch.setattr(RunLock, "push", lambda lock, record, *rest: push(lock, record and record.but(**values), *rest))


def commit_without_the_fence(patch: pytest.MonkeyPatch) -> None:
    """Create the branch even if the run's ref has moved."""
    push = Refs.push

    def push_the_branch(refs: Refs, *updates: RefUpdate) -> None:
        branch = [update for update in updates if update.ref.startswith("refs/heads/kaggle-train-")]
        push(refs, *(branch or updates))

    patch.setattr(Refs, "push", push_the_branch)


def delete_the_ref_first(patch: pytest.MonkeyPatch) -> None:
    """Delete the run's ref before the copies that it lists."""

    def roll_back(remotes: Remotes, lock: RunLock, _say: object, *, last: bool = False) -> None:
        assert lock.record is not None
        copies = lock.record.declared
        if last:
            lock.push(None)
        for copy in copies:
            remotes.store.delete(remotes.store.path_of(copy.oid), copy.identity)

    patch.setattr(Remotes, "roll_back", roll_back)


def read_checkpoints_first(patch: pytest.MonkeyPatch) -> None:
    """Read the checkpoint branches before the runs' refs in a sweep."""
    waste = Remotes.waste

    def read_first(remotes: Remotes, *words: Any) -> dict[str, list[StoredCopy]]:
        flat, named = remotes.store.flat, remotes.named_files
        early: set[str] = set()

        def list_and_read(prefix: str) -> dict[str, list[StoredCopy]]:
            found = flat(prefix)
            early.update(named())
            return found

        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(remotes.store, "flat", list_and_read)
            inner.setattr(remotes, "named_files", lambda *_: early)
            return waste(remotes, *words)

    patch.setattr(Remotes, "waste", read_first)


def delete_the_old_checkpoint_first(patch: pytest.MonkeyPatch) -> None:
    """Delete the files that the checkpoint branch names before it moves."""
    upload = CheckpointPublisher._upload

    def delete_and_upload(publisher: CheckpointPublisher, run: Publication) -> object:
        for name in publisher._named:
            publisher._remotes.store.delete(name, publisher._files[name])
        return upload(publisher, run)

    patch.setattr(CheckpointPublisher, "_upload", delete_and_upload)


def see_each_copy_once(patch: pytest.MonkeyPatch) -> None:
    """Rely on the first look at a path that showed a copy, in each call."""
    find = FolderObjects.find
    seen: dict[tuple[FolderObjects, str], list[StoredCopy]] = {}

    def find_once(store: FolderObjects, path: str) -> list[StoredCopy]:
        key = (store, path)
        seen[key] = seen.get(key) or find(store, path)
        return seen[key]

    patch.setattr(FolderObjects, "find", find_once)


def replace(owner: object, name: str, value: object) -> Switch:
    """Return the switch that replaces an attribute."""
    return lambda patch: patch.setattr(owner, name, value, raising=False)


# The first two calls of `create` of a publication mark the store.
SWITCHES: dict[str, tuple[Switch, str, str]] = {
    "nothing is declared": (
        partial(change_records, publishing=()),
        "commit one, die one, finish",
        "nothing names",
    ),
    "a takeover inherits nothing": (
        partial(change_records, undo=()),
        "commit one, die one, finish",
        "nothing names",
    ),
    "the run's ref goes before its copies": (
        delete_the_ref_first,
        "commit one, die one, recover two, run_to two delete, die two, finish",
        "nothing names",
    ),
    "branches are ignored": (
        replace(Refs, "named_objects", lambda *_: set()),
        "commit one, die one, push_by_hand a, finish",
        "lacks",
    ),
    "other runs' copies are relied on": (
        replace(publish_module._Publishing, "_is_declared_by_others", lambda *_: False),
        "commit three, die three, recover two, run_to two delete, publish one ab, for_a_while one, finish",
        "lacks",
    ),
    "no copy is seen again": (
        see_each_copy_once,
        "commit three, die three, publish one ab, run_to one find, step one, clean_up two, finish",
        "lacks",
    ),
    "the commit push is not fenced": (
        commit_without_the_fence,
        "commit one, step one late, die one, recover two, run_to two delete, arrive, finish",
        "lacks",
    ),
    "the living are taken over": (
        replace(SeenRun, "lease", 1),
        "publish one ab, run_to one create 3, recover two, for_a_while two, finish",
        "nothing names",
    ),
    "identities are ignored": (
        replace(FolderObjects, "verify", lambda store, path, _: next(iter(store.find(path)), None)),
        "publish one ab, run_to one create 3, die one, store_strange_object a, finish",
        "is lost",
    ),
    "copies are overwritten": (
        replace(FolderObjects, "_show", lambda _, part, target: bool(part.replace(target))),
        "publish one aa, run_to one create 3, store_strange_object a, finish",
        "written again",
    ),
    "objects are stored in any order": (
        replace(publish_module, "sorted", list),
        "publish one ab, publish three ba, run_to one find, run_to three find, finish",
        "no call ends",
    ),
    "checkpoints are read before runs": (
        read_checkpoints_first,
        "train one exp1 x, run_to one create 2, sweep two one, step two, step two, for_a_while one, finish",
        "lacks",
    ),
    "files go although a push is in doubt": (
        replace(CheckpointPublisher, "end", lambda publisher: (publisher._read_head(), publisher._delete_waste())),
        "train one exp1 x, run_to one push 2, step one late, run_to one delete 2, step one, arrive, finish",
        "lacks",
    ),
    "the old checkpoint goes first": (delete_the_old_checkpoint_first, "train one exp1 xy, finish", "lacks"),
}
"""A rule switched off; the steps after which that breaks a promise, as methods of `World`; what is broken then."""


@pytest.mark.parametrize(("switch", "steps", "broken"), SWITCHES.values(), ids=SWITCHES)
def test_each_rule_is_needed_and_suffices(world: World, switch: Switch, steps: str, broken: str) -> None:
    """The same requests in the same order: with all rules every promise holds, without one rule it breaks."""
    world.play(steps)
    world.close()
    world.begin()
    with pytest.MonkeyPatch.context() as patch:
        switch(patch)
        with pytest.raises(AssertionError, match=broken):
            world.play(steps)
