"""Claims on the vault under interleaving: the real code on real remotes, one request of one actor at a time.

Three actors, each a clone with a thread of its own, publish, move the checkpoint that they share, end it with a
finished run, recover and check. Wherever the code is about to speak to a remote its thread stops, and goes on when it
is given the baton; there it may also die, be refused, lose the answer, or have a push that arrives much later. A dead
actor's thread unwinds, and whatever it still says on its way is not said: that is what SIGKILL leaves. A lease expires
exactly when its holder has died or ended, so no clock is asked.

`protocol_model.py` explores the same steps without the code, and all of them; this searches by chance, in the code.
VAULT_EXAMPLES=1000 searches longer.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
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
from switches import (
    Switch,
    adopts_nothing,
    announces_nothing_superseded,
    does_not_listen,
    does_not_probe_again,
    ignores_what_branches_name,
    ignores_what_others_name,
    takes_identities_for_yes_or_no,
    takes_living_owners_for_dead,
    takes_living_undoers_for_dead,
)

from lib.errors import DvcPushError, GitPushError, RunError
from lib.sync import Checked, Publication, Published, check, recover, sync_outputs
from lib.sync import lease as lease_module
from lib.sync import publish as publish_module
from lib.sync import vault as vault_module
from lib.sync.intent import LEASE, StoredObject, clone_name
from lib.sync.refs import Refs, RefUpdate, SeenIntent
from lib.sync.stores.base import Objects, open_objects
from lib.sync.stores.folder import DirectoryObjects

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of DVC's own

STAMP = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
LONG = 60.0  # seconds that one request may take on a slow machine
ACTORS = ("one", "two", "three")
CONTENTS = ("ab", "bc", "ab")
"""What each actor publishes: two files, by letter. All share b; the first and the last are the same."""
MOVES = ("ad", "bd", "db")
"""What each moves the checkpoint to, or ends it with."""
CHECKPOINT = "kaggle-checkpoint-detection"


class Died(BaseException):
    """The actor's process is no more."""


class Stuck(AssertionError):
    """Somebody waits for ever."""


class Timeless:
    """Stands in for `time` in the transaction: no time passes, and who sleeps hands the baton on."""

    def __init__(self, world: World) -> None:
        self._world = world

    def monotonic(self) -> float:
        """Give the time, which stands still."""
        return 0.0

    def sleep(self, _seconds: float) -> None:
        """Let others go on."""
        self._world.at_work[threading.get_ident()].stop("sleep")


class Actor:
    """A clone and the call that is being made in it, if any."""

    def __init__(self, name: str, clone: Path) -> None:
        self.name, self.clone = name, clone
        self.owner = clone_name(clone / ".git" / "kaggle-sync" / "clone")
        self.run: Publication | None = None
        self.outcome: object = None
        self.at = ""
        """The request that is made when the actor gets the baton; empty when it does nothing."""
        self.thread: threading.Thread | None = None
        self._dead = False
        self._fault = ""
        self._baton, self._stopped = threading.Event(), threading.Event()

    def start(self, world: World, call: Callable[[], object]) -> None:
        """Make the call up to its first request."""

        def work() -> None:
            world.at_work[threading.get_ident()] = self
            try:
                self.outcome = call()
            except BaseException as error:  # noqa: BLE001  looked at when it has ended
                self.outcome = error
            finally:
                del world.at_work[threading.get_ident()]
                self.at = ""
                self._stopped.set()

        self.outcome, self._dead, self.at = None, False, "start"
        self._stopped.clear()
        self.thread = threading.Thread(target=work, name=self.name, daemon=True)
        self.thread.start()
        self._wait()

    def go_on(self, fault: str = "") -> None:
        """Let the actor make its next request."""
        self._fault = fault
        self._stopped.clear()
        self._baton.set()
        self._wait()

    def die(self) -> None:
        """End the actor right here."""
        self._dead = True
        while self.at:
            self.go_on()

    def stop(self, request: str) -> str:
        """Wait for the baton, in the actor's own thread; give what shall go wrong."""
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
    """Both remotes, the actors, and what stands between them."""

    def __init__(self, stores: Stores) -> None:
        self.stores = stores
        self.actors = {name: Actor(name, stores.clone_again(name)) for name in ACTORS}
        self.at_work: dict[int, Actor] = {}
        self.late: list[Callable[[], object]] = []
        self.strangers: dict[Path, tuple[int, int]] = {}
        self.told: list[str] = []
        self._branches = 0
        self._named: dict[str, list[tuple[str, int]]] = {}

    def begin(self) -> None:
        """Make everything new but the clones."""
        for ref in self.stores.refs():
            run_git("update-ref", "-d", ref, cwd=self.stores.origin)
        shutil.rmtree(self.stores.storage)
        self.stores.storage.mkdir()
        self.late, self.strangers, self.told = [], {}, []
        for actor in self.actors.values():
            actor.run = None
            shutil.rmtree(actor.clone / "artifacts", ignore_errors=True)
            for note in (actor.clone / ".git" / "kaggle-sync").glob("before-*"):
                note.unlink()

    # ── doing ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def publish(self, name: str, content: str, *supersedes: str, branch: str = "") -> None:
        """Begin to publish files of this content, under a branch of their own if there is no other."""
        actor = self.actors[name]
        self._branches += 1
        for path, letter in zip(WEIGHTS, content, strict=True):
            (actor.clone / path).parent.mkdir(parents=True, exist_ok=True)
            (actor.clone / path).write_bytes(letter.encode() * 100)
        branch = branch or f"kaggle-train-detection-{name}-{self._branches}"
        self.told.append(f"{name} has {content}")
        actor.run = Publication(actor.clone, branch, "Training\n", RUN, WEIGHTS, STAMP, supersedes=supersedes)
        self.retry(name)

    def move(self, name: str, content: str) -> None:
        """Begin to move the checkpoint to files of this content."""
        self.publish(name, content, CHECKPOINT, branch=CHECKPOINT)

    def retry(self, name: str) -> None:
        """Begin to publish the same once more."""
        actor = self.actors[name]
        run = actor.run
        assert run is not None
        self.told.append(f"{name} publishes {run.branch}")
        actor.start(self, lambda: sync_outputs(run, say=str))
        self.look_at(actor)

    def recover(self, name: str) -> None:
        """Begin to settle what others have left."""
        actor = self.actors[name]
        self.told.append(f"{name} recovers")
        actor.start(self, lambda: recover(actor.clone, say=str))
        self.look_at(actor)

    def look(self, name: str) -> None:
        """Begin to check both remotes."""
        actor = self.actors[name]
        self.told.append(f"{name} checks")
        actor.start(self, lambda: check(actor.clone, older_than=0, say=str))
        self.look_at(actor)

    def step(self, name: str, fault: str = "") -> None:
        """Let one actor make its next request."""
        actor = self.actors[name]
        self.told.append(f"{name}: {actor.at} {fault}")
        actor.go_on(fault)
        self.look_at(actor)

    def run_to(self, name: str, request: str, times: int = 1) -> None:
        """Let one actor go on until it is about to make a request, for the first or a later time; '' is its end."""
        for turn in range(times):
            if turn:
                self.step(name)
            for _ in range(200):
                if self.actors[name].at == request:
                    break
                self.step(name)
            else:
                raise Stuck(f"{name} never comes to {request!r}:\n{self}")

    def die(self, name: str) -> None:
        """Kill an actor; one that was uploading leaves half a file."""
        self.told.append(f"{name} dies before {self.actors[name].at}")
        self.actors[name].die()

    def working(self) -> list[str]:
        """Give the names of those in the middle of a call."""
        return [name for name, actor in self.actors.items() if actor.at]

    def settle(self) -> None:
        """Let everybody finish, then recover until nothing is left."""
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
        raise Stuck(f"nobody gets on:\n{self}")

    def close(self) -> None:
        """Leave no thread behind."""
        for actor in self.actors.values():
            if actor.at:
                actor.die()

    # ── looking ────────────────────────────────────────────────────────────────────────────────────────────────────

    def __str__(self) -> str:
        return "\n".join(self.told)

    def look_at(self, actor: Actor) -> None:
        """Check that what an actor said in the end is true."""
        if actor.at:
            return
        self.told.append(f"{actor.name} ends: {type(actor.outcome).__name__}")
        if isinstance(actor.outcome, BaseException) and not isinstance(actor.outcome, RunError | Died):
            raise actor.outcome
        heads = [ref.removeprefix("refs/heads/") for ref in self.stores.refs()]
        heads.append(CHECKPOINT)  # others move and end it too
        if isinstance(actor.outcome, Checked):
            for found in actor.outcome.findings:
                strange = [path.parent.name + path.name for path in self.strangers]
                known = found.kind == "expired" or (found.kind == "unnamed" and any(s in found.what for s in strange))
                assert known, f"it said that {found.what}:\n{self}"
        elif isinstance(actor.outcome, Published):
            assert actor.outcome.branch in heads, f"it said that it is published:\n{self}"
        elif isinstance(actor.outcome, RunError) and "everything is undone" in str(actor.outcome):
            assert actor.run is not None
            heads.remove(CHECKPOINT)
            if actor.run.branch == CHECKPOINT:
                return
            assert actor.run.branch not in heads, f"it said that all is undone:\n{self}"

    def named(self) -> dict[str, int]:
        """Give every object that a visible branch names, and its size."""
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
        """Check what is promised at any moment."""
        for oid, size in self.named().items():
            path = self.stores.object_path(oid)
            assert path.is_file(), f"a visible branch lacks {oid}:\n{self}"
            assert path.stat().st_size == size, f"{oid} is not whole:\n{self}"
        for path, identity in self.strangers.items():
            assert path.is_file(), f"a stranger's object is lost:\n{self}"
            assert _identity(path) == identity, f"a stranger's object was written again:\n{self}"

    def check_at_rest(self) -> None:
        """Check what is promised when everything has been recovered."""
        self.check()
        assert self.stores.intents() == [], f"an intent is left:\n{self}"
        allowed = {self.stores.object_path(oid) for oid in self.named()} | set(self.strangers)
        left = {self.stores.storage / name for name in self.stores.objects()} - allowed
        assert not left, f"nobody names {left}:\n{self}"

    def stranger_puts(self, letter: str) -> None:
        """Let somebody without an intent put an object there."""
        content = letter.encode() * 100
        path = self.stores.object_path(hashlib.md5(content).hexdigest())
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            self.strangers[path] = _identity(path)


def _identity(path: Path) -> tuple[int, int]:
    return path.stat().st_mtime_ns, path.stat().st_ino


@contextmanager
def standing_between(world: World) -> Iterator[None]:  # noqa: C901  a wrapper a seam
    """Put the world between the vault and its two remotes."""
    by_clone = {actor.clone: actor for actor in world.actors.values()}
    by_owner = {actor.owner: actor for actor in world.actors.values()}
    by_objects: dict[int, Actor] = {}

    def say(kind: type[Any], request: str, who: Callable[[Any], Actor], error: type[RunError]) -> None:
        real = getattr(kind, request)

        def said(self: Any, *words: Any, **options: Any) -> Any:
            actor = who(self)
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

        patch.setattr(kind, request, said)

    def opened(repo: Any) -> Objects:
        objects = open_objects(repo)
        by_objects[id(objects)] = by_clone[Path(repo.root_dir)]
        return objects

    def may_settle(vault: vault_module.Vault, seen: SeenIntent, _older_than: float = LEASE) -> bool:
        if seen.record is None or seen.record.id in lease_module.ALIVE:
            return False
        holder = by_owner[seen.record.owner.clone]
        return holder is by_clone[vault.refs.root] or not holder.at

    with pytest.MonkeyPatch.context() as patch:
        for request in ("push", "read_intents", "named_objects", "published_objects", "list_refs"):
            say(Refs, request, lambda refs: by_clone[refs.root], GitPushError)
        for request in ("look", "upload", "delete", "survey"):
            say(DirectoryObjects, request, lambda objects: by_objects[id(objects)], DvcPushError)
        patch.setattr(vault_module, "open_objects", opened)
        patch.setattr(publish_module, "SIDE_BY_SIDE", 1)
        for module in (lease_module, publish_module, vault_module):
            patch.setattr(module, "time", Timeless(world))
        patch.setattr(vault_module.Vault, "may_settle", may_settle)
        yield


def _leave_half_a_file(objects: DirectoryObjects, oid: str, source: Path, label: str, *_: object) -> None:
    part = objects._part(oid, label)
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(source.read_bytes()[:50])


@pytest.fixture
def world(stores: Stores) -> Iterator[World]:
    """Give three actors that stop at each request."""
    world = World(stores)
    with standing_between(world):
        yield world
        world.close()


# ── by chance ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Vault(RuleBasedStateMachine):
    """Whatever the actors do, in whatever order."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.world.begin()
        self._strange = "-"

    @initialize(letter=st.sampled_from("-abc"))
    def a_stranger_was_here(self, letter: str) -> None:
        """Somebody's object stands there from the start, or not."""
        self._strange = letter
        self.world.stranger_puts(letter)

    @rule(
        first=st.sampled_from(ACTORS),
        second=st.sampled_from(ACTORS),
        call=st.sampled_from(["publish", "publish", "move", "finish", "retry", "recover", "check"]),
        times=st.tuples(st.integers(1, 8), st.integers(0, 8)),
    )
    def go_on(self, first: str, second: str, call: str, times: tuple[int, int]) -> None:
        """Let one actor make a few requests, then another; who does nothing begins something."""
        for name, count in zip((first, second), times, strict=True):
            if not self.world.actors[name].at:
                self._begin(name, call)
            for _ in range(count):
                if self.world.actors[name].at:
                    self.world.step(name)
                    self.world.check()

    def _begin(self, name: str, call: str) -> None:
        # what a checkpoint names is deleted when it moves, also a stranger's copy of it: known, and not promised
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
        """Kill one that is at work."""
        self.world.die(data.draw(st.sampled_from(self.world.working())))

    @precondition(lambda self: self.world.working())
    @rule(data=st.data(), fault=st.sampled_from(["refused", "lost", "late"]))
    def go_on_with_a_fault(self, data: st.DataObject, fault: str) -> None:
        """Make one request that fails, or whose answer is lost, or that arrives much later."""
        self.world.step(data.draw(st.sampled_from(self.world.working())), fault)

    @precondition(lambda self: self.world.late)
    @rule()
    def a_late_push_arrives(self) -> None:
        """Let a push arrive that stood in a queue all the time."""
        self.world.told.append("a late push arrives")
        _arrive(self.world)

    @invariant()
    def promises_hold(self) -> None:
        """At any moment."""
        self.world.check()

    def teardown(self) -> None:
        """Let all finish and recover, then let every late push arrive: nothing may change by it."""
        try:
            self.world.settle()
            self.world.check_at_rest()
            refs = self.world.stores.refs()
            while self.world.late:
                _arrive(self.world)
            late_intents = set(self.world.stores.intents())
            assert {ref: commit for ref, commit in self.world.stores.refs().items() if ref not in late_intents} == refs
            self.world.settle()
            self.world.check_at_rest()
        finally:
            self.world.close()


def _arrive(world: World) -> None:
    """Let the oldest late push arrive, past everything that stands between."""
    push = world.late.pop(0)
    with suppress(RunError):
        push()


@pytest.mark.parametrize("examples", [4, pytest.param(24, marks=pytest.mark.slow)])
def test_no_order_of_requests_deaths_and_faults_breaks_a_promise(world: World, examples: int) -> None:
    """Two files each, one of them shared; every failure prints the requests that led to it."""
    examples = int(os.environ.get("VAULT_EXAMPLES", examples))

    class Search(Vault):
        pass

    Search.world = world
    run_state_machine_as_test(
        Search,
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            derandomize="VAULT_EXAMPLES" not in os.environ,
            database=None,
            phases=[Phase.generate],  # a failure prints its requests; shrinking it would take an hour
            suppress_health_check=list(HealthCheck),
        ),
    )


# ── with a rule switched off ──────────────────────────────────────────────────────────────────────────────────────────


Scenario = Callable[[World], None]


def look_at_branches_first(patch: pytest.MonkeyPatch) -> None:
    """Let an undoing read the branches, and the intents after them."""
    read_intents, named_objects, undo = Refs.read_intents, Refs.named_objects, vault_module.Vault.settle
    read: dict[Refs, set[str]] = {}
    undoing: set[Refs] = set()

    def undo_so(vault: vault_module.Vault, seen: SeenIntent) -> bool:
        undoing.add(vault.refs)
        return undo(vault, seen)

    def read_intents_second(refs: Refs) -> list[SeenIntent]:
        if refs in undoing:
            read[refs] = named_objects(refs, *vault_module.EVERYTHING)
            undoing.discard(refs)
        return read_intents(refs)

    patch.setattr(vault_module.Vault, "settle", undo_so)
    patch.setattr(Refs, "read_intents", read_intents_second)
    patch.setattr(
        Refs, "named_objects", lambda refs, *which: read.pop(refs) if refs in read else named_objects(refs, *which)
    )


def push_without_the_intent(patch: pytest.MonkeyPatch) -> None:
    """Let the commit push create the branch whatever became of the intent."""
    push = Refs.push

    def push_the_branch(refs: Refs, *moves: RefUpdate) -> None:
        push(refs, *(moves[:1] if len(moves) > 1 else moves))

    patch.setattr(Refs, "push", push_the_branch)


def remove_the_intent_first(patch: pytest.MonkeyPatch) -> None:
    """Let an undoing remove its intent before it deletes."""
    delete_new = vault_module.Vault._delete_new

    def late(vault: vault_module.Vault, doomed: Sequence[StoredObject], mark: lease_module.Lease, others: Any) -> None:
        with suppress(RunError):
            vault.refs.push(RefUpdate(mark.ref, mark.commit, None))
        patch.setattr(mark, "reread", lambda: None)
        delete_new(vault, doomed, mark, others)

    patch.setattr(vault_module.Vault, "_delete_new", late)


def two_are_about_to_commit(world: World, dying: str = "three", living: str = "one") -> None:
    """Let one send everything and another find it there; then the first dies."""
    world.publish(dying, "ab")
    world.run_to(dying, "push", 2)
    world.publish(living, "ab")
    world.run_to(living, "push", 2)
    world.die(dying)


def one_dies_and_another_publishes_the_same(world: World) -> None:
    """Recover the first when the second's branch is there."""
    two_are_about_to_commit(world)
    world.run_to("one", "")
    assert isinstance(world.actors["one"].outcome, Published)
    world.settle()
    world.check_at_rest()


def one_is_recovered_before_another_commits(world: World) -> None:
    """Only its intent tells that the second needs what the first has sent."""
    two_are_about_to_commit(world)
    world.recover("two")
    world.run_to("two", "")
    world.run_to("one", "")
    world.check()
    world.settle()
    world.check_at_rest()


def one_is_recovered_and_another_dies(world: World) -> None:
    """Let the second die when the first has been recovered for good."""
    two_are_about_to_commit(world)
    world.recover("two")
    world.run_to("two", "")
    world.die("one")
    world.settle()
    world.check_at_rest()


def one_commits_between_two_looks(world: World) -> None:
    """Let the second commit when an undoing of the first has read one of its two lists."""
    two_are_about_to_commit(world)
    world.recover("two")
    world.run_to("two", "push")
    world.step("two")
    world.step("two")
    world.run_to("one", "")
    assert isinstance(world.actors["one"].outcome, Published)
    world.settle()
    world.check_at_rest()


def one_declares_while_another_is_undone(world: World) -> None:
    """Let a run declare the same objects when an undoing has looked and not yet deleted."""
    world.publish("three", "ab")
    world.run_to("three", "push", 2)
    world.publish("one", "ab")
    world.run_to("one", "push")
    world.die("three")
    world.recover("two")
    world.run_to("two", "delete")
    for_a_while(world, "one")
    world.settle()
    world.check_at_rest()


def one_commits_while_it_is_undone(world: World) -> None:
    """Its commit push stands in a queue when it dies, and arrives after its intent was marked."""
    world.publish("one", "ab")
    world.run_to("one", "push", 2)
    world.step("one", "late")
    world.die("one")
    world.recover("two")
    world.run_to("two", "delete")
    _arrive(world)
    world.settle()
    world.check_at_rest()


def one_undoing_dies_before_it_deletes(world: World) -> None:
    """Whoever comes next has to find what is left to do."""
    world.publish("one", "ab")
    world.run_to("one", "push", 2)
    world.die("one")
    world.recover("two")
    world.run_to("two", "delete")
    world.die("two")
    world.settle()
    world.check_at_rest()


def for_a_while(world: World, name: str) -> None:
    """Let one actor go on until it ends, or has waited in vain for somebody."""
    for _ in range(60):
        if world.actors[name].at:
            world.step(name)


def one_looks_while_another_lives_and_is_undone(world: World) -> None:
    """Let what stood there at a run's first look be gone when it declares; it sends it again, and dies."""
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
    world.settle()
    world.check_at_rest()


def one_finds_objects_there_that_are_gone_when_it_sends(world: World) -> None:
    """Undo the dead run that had sent them after another's first look; nobody fails."""
    world.publish("three", "ab")
    world.run_to("three", "push", 2)
    world.publish("one", "ab")
    world.run_to("one", "push")
    world.die("three")
    world.recover("two")
    world.run_to("two", "")
    world.run_to("one", "")
    assert isinstance(world.actors["one"].outcome, Published), f"it fails, and nothing had failed:\n{world}"


def one_dies_after_an_upload_that_others_saw_begin(world: World) -> None:
    """Let somebody recover while a run is about to send; the run sends, and dies."""
    world.publish("three", "ab")
    world.run_to("three", "upload")
    world.recover("two")
    world.run_to("two", "")
    world.step("three")
    world.die("three")
    world.settle()
    world.check_at_rest()


def one_publishes_what_a_checkpoint_leaves_behind(world: World) -> None:
    """Publish it when the checkpoint has moved, and what it named is about to be deleted."""
    world.move("two", "ab")
    world.run_to("two", "")
    world.move("two", "cd")
    world.run_to("two", "delete")
    world.publish("one", "ab")
    for_a_while(world, "one")
    world.settle()
    world.check_at_rest()


SWITCHES = {
    "branches-keep-nothing": (ignores_what_branches_name, one_dies_and_another_publishes_the_same, "lacks"),
    "intents-keep-nothing": (ignores_what_others_name, one_is_recovered_before_another_commits, "lacks"),
    "nothing-is-adopted": (adopts_nothing, one_is_recovered_and_another_dies, "nobody names"),
    "branches-are-looked-at-first": (look_at_branches_first, one_commits_between_two_looks, "lacks"),
    "nobody-listens": (does_not_listen, one_declares_while_another_is_undone, "lacks"),
    "the-mark-does-not-fence": (push_without_the_intent, one_commits_while_it_is_undone, "lacks"),
    "the-intent-is-removed-first": (remove_the_intent_first, one_undoing_dies_before_it_deletes, "nobody names"),
    "before-is-yes-or-no": (
        takes_identities_for_yes_or_no,
        one_looks_while_another_lives_and_is_undone,
        "nobody names",
    ),
    "nobody-probes-again": (does_not_probe_again, one_finds_objects_there_that_are_gone_when_it_sends, "it fails"),
    "the-living-are-undone": (
        takes_living_owners_for_dead,
        one_dies_after_an_upload_that_others_saw_begin,
        "nobody names",
    ),
    "the-living-are-taken-over": (takes_living_undoers_for_dead, one_declares_while_another_is_undone, "lacks"),
    "nothing-superseded-is-announced": (
        announces_nothing_superseded,
        one_publishes_what_a_checkpoint_leaves_behind,
        "lacks",
    ),
}


@pytest.mark.parametrize(("switch", "scenario", "broken"), SWITCHES.values(), ids=SWITCHES)
def test_a_rule_that_is_switched_off_is_missed_and_was_enough(
    world: World, switch: Switch, scenario: Scenario, broken: str
) -> None:
    """The same requests in the same order: with all rules every promise holds, without one it breaks."""
    scenario(world)
    world.close()
    world.begin()
    with pytest.MonkeyPatch.context() as patch:
        switch(patch)
        with pytest.raises(AssertionError, match=broken):
            scenario(world)
