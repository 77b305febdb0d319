"""Claims on the transaction under interleaving: the real code on real remotes, one request of one actor at a time.

Three actors, each a clone with its own thread, publish, move the checkpoint that they share, replace it by a finished
run, recover and check. Before each request to a remote the thread stops until it receives the baton; the request may
then also fail, lose its answer, be a push that arrives much later, or never happen because the actor dies. The thread
of a dead actor unwinds without any further request, which leaves the remotes as SIGKILL does. A lease expires exactly
when its holder has died or ended, so that no clock is needed.

`protocol_model.py` explores the same steps exhaustively, without the code; this searches at random, in the code.
SYNC_EXAMPLES=1000 searches longer.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from conftest import RUN, WEIGHTS, Stores, run_git
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from publications import STAMP, md5_of
from switches import (
    Switch,
    adopts_nothing,
    does_not_listen,
    does_not_probe_again,
    hides_superseded_objects,
    ignores_branches,
    ignores_identities,
    ignores_other_intents,
    rolls_back_live_publications,
    takes_over_live_rollbacks,
)

from lib.errors import DvcPushError, GitPushError, RunError
from lib.sync import Checked, Publication, Published, check, recover, sync_outputs
from lib.sync import lease as lease_module
from lib.sync import publish as publish_module
from lib.sync import remotes as remotes_module
from lib.sync.intent import LEASE, StoredObject, clone_name
from lib.sync.refs import Refs, RefUpdate, SeenIntent
from lib.sync.remotes import EVERYTHING, Remotes
from lib.sync.stores.base import Objects, open_objects
from lib.sync.stores.folder import FolderObjects

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of DVC's own

LONG = 60.0  # seconds; one request may take this long on a slow machine
ACTORS = ("one", "two", "three")
CONTENTS = ("ab", "bc", "ab")
"""The two files that each actor publishes, as letters. All share b; the first and the last are the same."""
MOVES = ("ad", "bd", "db")
"""The two files to which each actor moves the checkpoint, or by which it replaces it."""
CHECKPOINT = "kaggle-checkpoint-detection"


class Died(BaseException):
    """The actor's process has died."""


class Stuck(AssertionError):
    """An actor waits for ever."""


class Timeless:
    """Replaces `time` in the transaction: no time passes, and an actor that sleeps hands the baton on."""

    def __init__(self, world: World) -> None:
        self._world = world

    def monotonic(self) -> float:
        """Return a constant time."""
        return 0.0

    def sleep(self, _seconds: float) -> None:
        """Stop the actor, so that others continue."""
        self._world.by_thread[threading.get_ident()].stop("sleep")


class Actor:
    """A clone and the call in progress in it, if any."""

    def __init__(self, name: str, clone: Path) -> None:
        self.name, self.clone = name, clone
        self.owner = clone_name(clone / ".git" / "kaggle-sync" / "clone")
        self.run: Publication | None = None
        self.outcome: object = None
        self.at = ""
        """The request that the actor makes when it receives the baton; empty if no call is in progress."""
        self.thread: threading.Thread | None = None
        self._dead = False
        self._fault = ""
        self._baton, self._stopped = threading.Event(), threading.Event()

    def start(self, world: World, call: Callable[[], object]) -> None:
        """Begin the call, up to its first request."""

        def work() -> None:
            world.by_thread[threading.get_ident()] = self
            try:
                self.outcome = call()
            except BaseException as error:  # noqa: BLE001  checked when the call has ended
                self.outcome = error
            finally:
                del world.by_thread[threading.get_ident()]
                self.at = ""
                self._stopped.set()

        self.outcome, self._dead, self.at = None, False, "start"
        self._stopped.clear()
        self.thread = threading.Thread(target=work, name=self.name, daemon=True)
        self.thread.start()
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
        if not self.at and self.thread is not None:
            self.thread.join()


class World:
    """Both remotes, the actors, and the pushes that are still on their way."""

    def __init__(self, stores: Stores) -> None:
        self.stores = stores
        self.actors = {name: Actor(name, stores.clone_again(name)) for name in ACTORS}
        self.by_thread: dict[int, Actor] = {}
        self.late: list[Callable[[], object]] = []
        self.strangers: dict[Path, tuple[int, int]] = {}
        self.log: list[str] = []
        self._branches = 0
        self._named: dict[str, list[tuple[str, int]]] = {}

    def begin(self) -> None:
        """Reset everything but the clones."""
        for ref in self.stores.refs():
            run_git("update-ref", "-d", ref, cwd=self.stores.origin)
        shutil.rmtree(self.stores.storage)
        self.stores.storage.mkdir()
        self.late, self.strangers, self.log = [], {}, []
        for actor in self.actors.values():
            actor.run = None
            shutil.rmtree(actor.clone / "artifacts", ignore_errors=True)
            for backup in (actor.clone / ".git" / "kaggle-sync").glob("before-*"):
                backup.unlink()

    # ── steps ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def publish(self, name: str, content: str, *supersedes: str, branch: str = "") -> None:
        """Begin to publish files of this content, under a new branch unless one is given."""
        actor = self.actors[name]
        self._branches += 1
        for path, letter in zip(WEIGHTS, content, strict=True):
            (actor.clone / path).parent.mkdir(parents=True, exist_ok=True)
            (actor.clone / path).write_bytes(letter.encode() * 100)
        branch = branch or f"kaggle-train-detection-{name}-{self._branches}"
        self.log.append(f"{name} has {content}")
        actor.run = Publication(actor.clone, branch, "Training\n", RUN, WEIGHTS, STAMP, supersedes=supersedes)
        self.retry(name)

    def move(self, name: str, content: str) -> None:
        """Begin to move the checkpoint to files of this content."""
        self.publish(name, content, CHECKPOINT, branch=CHECKPOINT)

    def retry(self, name: str) -> None:
        """Begin to publish the actor's run once more."""
        actor = self.actors[name]
        run = actor.run
        assert run is not None
        self.log.append(f"{name} publishes {run.branch}")
        actor.start(self, lambda: sync_outputs(run, say=str))
        self.check_outcome(actor)

    def recover(self, name: str) -> None:
        """Begin to recover dead publications."""
        actor = self.actors[name]
        self.log.append(f"{name} recovers")
        actor.start(self, lambda: recover(actor.clone, say=str))
        self.check_outcome(actor)

    def look(self, name: str) -> None:
        """Begin to check both remotes."""
        actor = self.actors[name]
        self.log.append(f"{name} checks")
        actor.start(self, lambda: check(actor.clone, older_than=0, say=str))
        self.check_outcome(actor)

    def step(self, name: str, fault: str = "") -> None:
        """Make one actor's next request."""
        actor = self.actors[name]
        self.log.append(f"{name}: {actor.at} {fault}")
        actor.go_on(fault)
        self.check_outcome(actor)

    def run_to(self, name: str, request: str, times: int = 1) -> None:
        """Continue one actor until it is about to make a request for the `times`-th time; '' is the end of its call."""
        for turn in range(times):
            if turn:
                self.step(name)
            for _ in range(200):
                if self.actors[name].at == request:
                    break
                self.step(name)
            else:
                raise Stuck(f"{name} never reaches {request!r}:\n{self}")

    def die(self, name: str) -> None:
        """Kill an actor; one that is uploading leaves half a file."""
        self.log.append(f"{name} dies before {self.actors[name].at}")
        self.actors[name].die()

    def working(self) -> list[str]:
        """Return the names of the actors with a call in progress."""
        return [name for name, actor in self.actors.items() if actor.at]

    def finish(self) -> None:
        """Finish all calls, then recover until nothing is left."""
        for name in self._all_end():
            self.recover(name)
            self._all_end()

    def _all_end(self) -> tuple[str, ...]:
        for _ in range(500):
            if not self.working():
                return ACTORS
            for name in self.working():
                self.step(name)
                self.check()
        raise Stuck(f"no call ends:\n{self}")

    def close(self) -> None:
        """Kill all actors, so that no thread is left."""
        for actor in self.actors.values():
            if actor.at:
                actor.die()

    # ── checks ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def __str__(self) -> str:
        return "\n".join(self.log)

    def check_outcome(self, actor: Actor) -> None:
        """Check that the outcome of an actor's call is true."""
        if actor.at:
            return
        self.log.append(f"{actor.name} ends: {type(actor.outcome).__name__}")
        if isinstance(actor.outcome, BaseException) and not isinstance(actor.outcome, RunError | Died):
            raise actor.outcome
        heads = [ref.removeprefix("refs/heads/") for ref in self.stores.refs()]
        heads.append(CHECKPOINT)  # others move and replace it too
        if isinstance(actor.outcome, Checked):
            for found in actor.outcome.findings:
                strange = [path.parent.name + path.name for path in self.strangers]
                known = found.kind == "expired" or (found.kind == "unnamed" and any(s in found.what for s in strange))
                assert known, f"it reports that {found.what}:\n{self}"
        elif isinstance(actor.outcome, Published):
            assert actor.outcome.branch in heads, f"it reports a publication that is not there:\n{self}"
        elif isinstance(actor.outcome, RunError) and "everything is rolled back" in str(actor.outcome):
            assert actor.run is not None
            heads.remove(CHECKPOINT)
            if actor.run.branch == CHECKPOINT:
                return
            assert actor.run.branch not in heads, f"it reports a rollback, but the branch is there:\n{self}"

    def named(self) -> dict[str, int]:
        """Return every object that a visible branch names, with its size."""
        found: dict[str, int] = {}
        for ref, commit in self.stores.refs().items():
            if ref.startswith("refs/heads/"):
                if commit not in self._named:
                    self._named[commit] = list(self._read(commit))
                found.update(self._named[commit])
        return found

    def _read(self, commit: str) -> Iterator[tuple[str, int]]:
        for name in run_git("ls-tree", "-r", "--name-only", commit, cwd=self.stores.origin).splitlines():
            if name.endswith(".dvc"):
                words = run_git("show", f"{commit}:{name}", cwd=self.stores.origin).split()
                yield words[words.index("md5:") + 1], int(words[words.index("size:") + 1])

    def check(self) -> None:
        """Check the promises that hold at any moment."""
        for oid, size in self.named().items():
            path = self.stores.object_path(oid)
            assert path.is_file(), f"a visible branch lacks {oid}:\n{self}"
            assert path.stat().st_size == size, f"{oid} is incomplete:\n{self}"
        for path, identity in self.strangers.items():
            assert path.is_file(), f"a stranger's object is lost:\n{self}"
            assert _identity(path) == identity, f"a stranger's object was written again:\n{self}"

    def check_at_rest(self) -> None:
        """Check the promises that hold after recovery."""
        self.check()
        assert self.stores.intents() == [], f"an intent is left:\n{self}"
        allowed = {self.stores.object_path(oid) for oid in self.named()} | set(self.strangers)
        left = {self.stores.storage / name for name in self.stores.objects()} - allowed
        assert not left, f"nothing names {left}:\n{self}"

    def store_strange_object(self, letter: str) -> None:
        """Store an object without an intent."""
        content = letter.encode() * 100
        path = self.stores.object_path(md5_of(content))
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            self.strangers[path] = _identity(path)


def _identity(path: Path) -> tuple[int, int]:
    return path.stat().st_mtime_ns, path.stat().st_ino


@contextmanager
def stopping_at_requests(world: World) -> Iterator[None]:  # noqa: C901  a wrapper a seam
    """Stop the actors of the world before each request of the transaction to its two remotes."""
    by_clone = {actor.clone: actor for actor in world.actors.values()}
    by_owner = {actor.owner: actor for actor in world.actors.values()}
    by_objects: dict[int, Actor] = {}

    def wrap(kind: type[Any], request: str, actor_of: Callable[[Any], Actor], error: type[RunError]) -> None:
        real = getattr(kind, request)

        def wrapper(self: Any, *words: Any, **options: Any) -> Any:
            actor = actor_of(self)
            try:
                fault = actor.stop(request)
            except Died:
                if request == "upload":
                    _leave_half_a_file(self, *words)
                raise
            if fault == "late" and request == "push":
                world.late.append(lambda: real(self, *words, **options))
            if fault in ("refused", "late"):
                raise error(f"{request} was refused.")
            answer = real(self, *words, **options)
            if fault == "lost":
                raise error(f"the answer to {request} was lost.")
            return answer

        patch.setattr(kind, request, wrapper)

    def opened(repo: Any) -> Objects:
        objects = open_objects(repo)
        by_objects[id(objects)] = by_clone[Path(repo.root_dir)]
        return objects

    def may_recover(remotes: Remotes, seen: SeenIntent, _older_than: float = LEASE) -> bool:
        if seen.record is None or seen.record.id in lease_module.ALIVE:
            return False
        holder = by_owner[seen.record.owner.clone]
        return holder is by_clone[remotes.refs.root] or not holder.at

    with pytest.MonkeyPatch.context() as patch:
        for request in ("push", "read_intents", "named_objects", "published_objects", "list_refs"):
            wrap(Refs, request, lambda refs: by_clone[refs.root], GitPushError)
        for request in ("look", "upload", "delete", "survey"):
            wrap(FolderObjects, request, lambda objects: by_objects[id(objects)], DvcPushError)
        patch.setattr(remotes_module, "open_objects", opened)
        patch.setattr(publish_module, "CONCURRENT_UPLOADS", 1)
        for module in (lease_module, publish_module, remotes_module):
            patch.setattr(module, "time", Timeless(world))
        patch.setattr(Remotes, "may_recover", may_recover)
        yield


def _leave_half_a_file(objects: FolderObjects, oid: str, source: Path, label: str, *_: object) -> None:
    part = objects._part(oid, label)
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(source.read_bytes()[:50])


@pytest.fixture
def world(stores: Stores) -> Iterator[World]:
    """Yield three actors that stop before each request."""
    world = World(stores)
    with stopping_at_requests(world):
        yield world
        world.close()


# ── at random ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Interleavings(RuleBasedStateMachine):
    """Random steps of all actors, in random order."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.world.begin()
        self._strange = "-"

    @initialize(letter=st.sampled_from("-abc"))
    def a_stranger_was_here(self, letter: str) -> None:
        """Store a stranger's object at the start, or none."""
        self._strange = letter
        self.world.store_strange_object(letter)

    @rule(
        first=st.sampled_from(ACTORS),
        second=st.sampled_from(ACTORS),
        call=st.sampled_from(["publish", "publish", "move", "finish", "retry", "recover", "check"]),
        times=st.tuples(st.integers(1, 8), st.integers(0, 8)),
    )
    def go_on(self, first: str, second: str, call: str, times: tuple[int, int]) -> None:
        """Make a few requests of one actor, then of another; an idle actor begins a call."""
        for name, count in zip((first, second), times, strict=True):
            if not self.world.actors[name].at:
                self._begin(name, call)
            for _ in range(count):
                if self.world.actors[name].at:
                    self.world.step(name)
                    self.world.check()

    def _begin(self, name: str, call: str) -> None:
        # a checkpoint that moves also deletes a stranger's copy of its objects: known, and not promised
        content = MOVES[ACTORS.index(name)].replace(self._strange, "e")
        if call == "recover":
            self.world.recover(name)
        elif call == "check":
            self.world.look(name)
        elif call == "move":
            self.world.move(name, content)
        elif call == "finish":
            self.world.publish(name, content, CHECKPOINT)
        elif call == "retry" and self.world.actors[name].run is not None:
            self.world.retry(name)
        else:
            self.world.publish(name, CONTENTS[ACTORS.index(name)])

    @precondition(lambda self: self.world.working())
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        """Kill an actor during its call."""
        self.world.die(data.draw(st.sampled_from(self.world.working())))

    @precondition(lambda self: self.world.working())
    @rule(data=st.data(), fault=st.sampled_from(["refused", "lost", "late"]))
    def go_on_with_a_fault(self, data: st.DataObject, fault: str) -> None:
        """Make a request that fails, loses its answer, or arrives much later."""
        self.world.step(data.draw(st.sampled_from(self.world.working())), fault)

    @precondition(lambda self: self.world.late)
    @rule()
    def a_late_push_arrives(self) -> None:
        """Make a delayed push arrive."""
        self.world.log.append("a late push arrives")
        _arrive(self.world)

    @invariant()
    def promises_hold(self) -> None:
        """Check the promises that hold at any moment."""
        self.world.check()

    def teardown(self) -> None:
        """Finish all calls and recover, then make every late push arrive, which must change nothing."""
        try:
            self.world.finish()
            self.world.check_at_rest()
            refs = self.world.stores.refs()
            while self.world.late:
                _arrive(self.world)
            late_intents = set(self.world.stores.intents())
            assert {ref: commit for ref, commit in self.world.stores.refs().items() if ref not in late_intents} == refs
            self.world.finish()
            self.world.check_at_rest()
        finally:
            self.world.close()


def _arrive(world: World) -> None:
    """Make the oldest late push arrive, past the wrappers."""
    push = world.late.pop(0)
    with suppress(RunError):
        push()


@pytest.mark.parametrize("examples", [4, pytest.param(24, marks=pytest.mark.slow)])
def test_no_order_of_requests_deaths_and_faults_breaks_a_promise(world: World, examples: int) -> None:
    """Two files each, one of them shared; a failure prints the requests that led to it."""
    examples = int(os.environ.get("SYNC_EXAMPLES", examples))

    class Search(Interleavings):
        pass

    Search.world = world
    run_state_machine_as_test(
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


# ── with a rule switched off ──────────────────────────────────────────────────────────────────────────────────────────


Scenario = Callable[[World], None]


def read_branches_first(patch: pytest.MonkeyPatch) -> None:
    """Read the branches before the intents in a rollback."""
    read_intents, named_objects, recover_intent = Refs.read_intents, Refs.named_objects, Remotes.recover
    read: dict[Refs, set[str]] = {}
    recovering: set[Refs] = set()

    def note_and_recover(remotes: Remotes, seen: SeenIntent) -> bool:
        recovering.add(remotes.refs)
        return recover_intent(remotes, seen)

    def read_intents_second(refs: Refs) -> list[SeenIntent]:
        if refs in recovering:
            read[refs] = named_objects(refs, *EVERYTHING)
            recovering.discard(refs)
        return read_intents(refs)

    patch.setattr(Remotes, "recover", note_and_recover)
    patch.setattr(Refs, "read_intents", read_intents_second)
    patch.setattr(
        Refs, "named_objects", lambda refs, *which: read.pop(refs) if refs in read else named_objects(refs, *which)
    )


def push_without_the_fence(patch: pytest.MonkeyPatch) -> None:
    """Create the branch in the commit push even if the intent has changed."""
    push = Refs.push

    def push_the_branch(refs: Refs, *updates: RefUpdate) -> None:
        push(refs, *(updates[:1] if len(updates) > 1 else updates))

    patch.setattr(Refs, "push", push_the_branch)


def delete_the_intent_first(patch: pytest.MonkeyPatch) -> None:
    """Delete the intent of a rollback before the objects."""
    delete_new = Remotes._delete_new

    def late(remotes: Remotes, to_delete: Sequence[StoredObject], mark: lease_module.Lease, others: Any) -> None:
        with suppress(RunError):
            remotes.refs.push(RefUpdate(mark.ref, mark.commit, None))
        patch.setattr(mark, "reread", lambda: None)
        delete_new(remotes, to_delete, mark, others)

    patch.setattr(Remotes, "_delete_new", late)


def two_are_about_to_commit(world: World, dying: str = "three", living: str = "one") -> None:
    """Upload everything in one run, which another finds there; then kill the first."""
    world.publish(dying, "ab")
    world.run_to(dying, "push", 2)
    world.publish(living, "ab")
    world.run_to(living, "push", 2)
    world.die(dying)


def one_dies_and_another_publishes_the_same(world: World) -> None:
    """Recover the first after the second has committed."""
    two_are_about_to_commit(world)
    world.run_to("one", "")
    assert isinstance(world.actors["one"].outcome, Published)
    world.finish()
    world.check_at_rest()


def one_is_recovered_before_another_commits(world: World) -> None:
    """Recover the first while only the second's intent shows that it needs the same objects."""
    two_are_about_to_commit(world)
    world.recover("two")
    world.run_to("two", "")
    world.run_to("one", "")
    world.check()
    world.finish()
    world.check_at_rest()


def one_is_recovered_and_another_dies(world: World) -> None:
    """Kill the second after the first has been recovered completely."""
    two_are_about_to_commit(world)
    world.recover("two")
    world.run_to("two", "")
    world.die("one")
    world.finish()
    world.check_at_rest()


def one_commits_between_two_reads(world: World) -> None:
    """Commit the second when the rollback of the first has read one of its two lists."""
    two_are_about_to_commit(world)
    world.recover("two")
    world.run_to("two", "push")
    world.step("two")
    world.step("two")
    world.run_to("one", "")
    assert isinstance(world.actors["one"].outcome, Published)
    world.finish()
    world.check_at_rest()


def one_declares_while_another_is_rolled_back(world: World) -> None:
    """Declare the same objects when a rollback has looked at them and not deleted them yet."""
    world.publish("three", "ab")
    world.run_to("three", "push", 2)
    world.publish("one", "ab")
    world.run_to("one", "push")
    world.die("three")
    world.recover("two")
    world.run_to("two", "delete")
    for_a_while(world, "one")
    world.finish()
    world.check_at_rest()


def one_commits_while_it_is_rolled_back(world: World) -> None:
    """Delay the commit push of a run that dies, until its intent has been marked."""
    world.publish("one", "ab")
    world.run_to("one", "push", 2)
    world.step("one", "late")
    world.die("one")
    world.recover("two")
    world.run_to("two", "delete")
    _arrive(world)
    world.finish()
    world.check_at_rest()


def one_rollback_dies_before_it_deletes(world: World) -> None:
    """Kill a recovery; the next one must find what is left to do."""
    world.publish("one", "ab")
    world.run_to("one", "push", 2)
    world.die("one")
    world.recover("two")
    world.run_to("two", "delete")
    world.die("two")
    world.finish()
    world.check_at_rest()


def for_a_while(world: World, name: str) -> None:
    """Continue one actor until its call ends, or for 60 requests if it waits."""
    for _ in range(60):
        if world.actors[name].at:
            world.step(name)


def one_probes_before_another_is_rolled_back(world: World) -> None:
    """Delete the objects of a run's first probe before it declares; it uploads them again, and dies."""
    world.publish("three", "ab")
    world.run_to("three", "push", 2)
    world.publish("one", "ab")
    world.run_to("one", "look")
    world.step("one")
    world.die("three")
    world.recover("two")
    world.run_to("two", "")
    world.run_to("one", "push", 2)
    world.die("one")
    world.finish()
    world.check_at_rest()


def one_finds_objects_that_are_gone_when_it_uploads(world: World) -> None:
    """Roll back the dead run that had uploaded them after another's first probe; no run fails."""
    world.publish("three", "ab")
    world.run_to("three", "push", 2)
    world.publish("one", "ab")
    world.run_to("one", "push")
    world.die("three")
    world.recover("two")
    world.run_to("two", "")
    world.run_to("one", "")
    assert isinstance(world.actors["one"].outcome, Published), f"it fails, although nothing had failed:\n{world}"


def one_dies_after_an_upload_that_others_saw_begin(world: World) -> None:
    """Recover while a run is about to upload; the run uploads, and dies."""
    world.publish("three", "ab")
    world.run_to("three", "upload")
    world.recover("two")
    world.run_to("two", "")
    world.step("three")
    world.die("three")
    world.finish()
    world.check_at_rest()


def one_publishes_the_objects_of_a_moved_checkpoint(world: World) -> None:
    """Publish the checkpoint's objects when the checkpoint has moved and they are about to be deleted."""
    world.move("two", "ab")
    world.run_to("two", "")
    world.move("two", "cd")
    world.run_to("two", "delete")
    world.publish("one", "ab")
    for_a_while(world, "one")
    world.finish()
    world.check_at_rest()


SWITCHES = {
    "branches-are-ignored": (ignores_branches, one_dies_and_another_publishes_the_same, "lacks"),
    "other-intents-are-ignored": (ignores_other_intents, one_is_recovered_before_another_commits, "lacks"),
    "nothing-is-adopted": (adopts_nothing, one_is_recovered_and_another_dies, "nothing names"),
    "branches-are-read-first": (read_branches_first, one_commits_between_two_reads, "lacks"),
    "no-run-listens": (does_not_listen, one_declares_while_another_is_rolled_back, "lacks"),
    "the-mark-does-not-fence": (push_without_the_fence, one_commits_while_it_is_rolled_back, "lacks"),
    "the-intent-is-deleted-first": (delete_the_intent_first, one_rollback_dies_before_it_deletes, "nothing names"),
    "identities-are-ignored": (
        ignores_identities,
        one_probes_before_another_is_rolled_back,
        "nothing names",
    ),
    "no-run-probes-again": (does_not_probe_again, one_finds_objects_that_are_gone_when_it_uploads, "it fails"),
    "live-publications-are-rolled-back": (
        rolls_back_live_publications,
        one_dies_after_an_upload_that_others_saw_begin,
        "nothing names",
    ),
    "live-rollbacks-are-taken-over": (takes_over_live_rollbacks, one_declares_while_another_is_rolled_back, "lacks"),
    "superseded-objects-are-hidden": (
        hides_superseded_objects,
        one_publishes_the_objects_of_a_moved_checkpoint,
        "lacks",
    ),
}


@pytest.mark.parametrize(("switch", "scenario", "broken"), SWITCHES.values(), ids=SWITCHES)
def test_each_rule_is_needed_and_suffices(world: World, switch: Switch, scenario: Scenario, broken: str) -> None:
    """The same requests in the same order: with all rules every promise holds, without one rule it breaks."""
    scenario(world)
    world.close()
    world.begin()
    with pytest.MonkeyPatch.context() as patch:
        switch(patch)
        with pytest.raises(AssertionError, match=broken):
            scenario(world)
