"""A run is stopped by a ref that anybody may create: who sees it, whom it counts for, and who deletes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import switches
from conftest import WEIGHTS, Stores, eventually, run_git, write_run
from publications import (
    BRANCH,
    CHECKPOINT,
    checkpoints,
    md5_of,
    publish,
    publish_checkpoint,
    take_over,
)
from switches import Switch

from lib.errors import GitPushError, TakenOverError
from lib.remotes.credentials import Credentials
from lib.sync import Refs, RunLock, Stop, discard, open_remotes, recover
from lib.sync import lock as lock_module
from lib.sync.record import DeclaredCopy
from lib.sync.refs import ANY, RefUpdate

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of DVC's own

NAME = "detection-exp001"
REF, STOP = f"refs/runs/{NAME}", f"refs/stops/{NAME}"
HEAD, PUBLISHED = f"refs/heads/{CHECKPOINT}", f"refs/heads/{BRANCH}"
LEASE = 1.0  # seconds, of sessions that never answer
Make = Callable[..., RunLock]


@pytest.fixture
def lock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Yield a function that makes locks, not taken yet, which look often; they are released after the test."""
    monkeypatch.setattr(lock_module, "POLL", 0.1)
    monkeypatch.setattr("lib.remotes.repository.PAUSES", (0.01,))
    made: list[RunLock] = []

    def make(clone: Path, *, lease: float = 20.0, say: Callable[[str], object] = str) -> RunLock:
        made.append(RunLock(Refs(clone, Credentials()), NAME, lease=lease, say=say))
        return made[-1]

    yield make
    for each in made:
        each.release()


def hang(held: RunLock) -> None:
    """Stop the looks of a session, as if its machine was suspended or had died."""
    held._ended.set()


def stop(stores: Stores, action: str = "publish") -> None:
    """Create the stop of the run, as a person does in another clone."""
    clone = stores.folder / "person"
    refs = Refs(clone if clone.exists() else stores.clone_again("person"), Credentials())
    refs.push(RefUpdate(STOP, ANY, refs.write_stop(Stop.model_validate({"action": action}))))


def test_a_session_sees_a_stop_when_it_looks_for_questions(stores: Stores, lock: Make) -> None:
    """Also a later one, of another action; its hold stays, and it answers questions."""
    said: list[str] = []
    held = lock(stores.clone, say=said.append)
    held.take()
    assert held.confirm() is None
    stop(stores)
    eventually(lambda: held.stop)
    wanted = held.confirm()
    assert wanted is not None
    assert wanted.action == "publish"
    stop(stores, "discard")
    eventually(lambda: held.stop and held.stop.action == "discard")
    assert [line.partition(", and ")[2] for line in said] == ["publishes what it has.", "publishes nothing."]
    assert stores.refs().keys() == {REF, STOP}


def test_a_stop_that_cannot_be_read_loses_nothing(stores: Stores, lock: Make) -> None:
    """It was made by hand or by a later version: the run publishes."""
    held = lock(stores.clone)
    held.take()
    run_git("update-ref", STOP, "refs/heads/main", cwd=stores.origin)
    eventually(lambda: held.stop)
    assert held.stop is not None
    assert held.stop.action == "publish"


@pytest.mark.parametrize("keeps_checkpoint", [False, True])
def test_a_stop_after_the_last_look_goes_with_the_commit_push(
    stores: Stores, lock: Make, *, keeps_checkpoint: bool
) -> None:
    """The run has not seen it: it is published as it is, and the stop is there for no session any more."""
    held = lock(stores.clone)
    with checkpoints(stores.clone, held) as publisher:
        publish_checkpoint(publisher, stores.clone)
    hang(held)
    stop(stores)
    publish(stores.clone, hold=held, keeps_checkpoint=keeps_checkpoint)
    assert held.stop is None
    assert stores.refs().keys() == ({PUBLISHED, HEAD} if keeps_checkpoint else {PUBLISHED})


def test_a_stop_without_a_session_does_not_stop_the_next_one(stores: Stores, lock: Make) -> None:
    """A session that takes the run deletes it in the same push."""
    stop(stores)
    held = lock(stores.clone)
    held.take()
    assert stores.refs().keys() == {REF}
    time.sleep(0.5)  # several looks
    assert held.confirm() is None


def test_a_stop_of_a_session_that_was_taken_over_does_not_stop_the_next_one(stores: Stores, lock: Make) -> None:
    """The dead session has not obeyed: the one that takes its run over trains, as a person has wanted since."""
    dead = lock(stores.clone_again(), lease=LEASE)
    dead.take()
    hang(dead)
    stop(stores)
    held = lock(stores.clone)
    held.take()
    assert stores.refs().keys() == {REF}
    assert held.confirm() is None


def test_a_session_that_was_taken_over_does_not_delete_the_stop_of_the_next_one(stores: Stores, lock: Make) -> None:
    """Its commit push is fenced, and the stop is in it."""
    held, over = lock(stores.clone), list[RunLock]()
    held.take()
    hang(held)

    def be_taken_over(line: str) -> None:
        if line.startswith("Phase 4"):
            over.append(take_over(stores.clone_again()))
            stop(stores)

    with pytest.raises(TakenOverError):
        publish(stores.clone, hold=held, say=be_taken_over)
    assert stores.refs().keys() == {REF, STOP}
    over[0].release()


def test_recovery_leaves_the_stop_of_a_dead_session(stores: Stores, lock: Make) -> None:
    """Else a push or a sweep would begin again what a person has stopped."""
    held = lock(stores.clone_again(), lease=LEASE)
    held.take()
    hang(held)
    stop(stores)
    assert recover(stores.clone, say=str) == 0
    assert stores.refs().keys() == {STOP}
    recover(stores.clone, say=str)
    assert stores.refs().keys() == {STOP}


def test_one_run_can_be_recovered_alone(stores: Stores, lock: Make) -> None:
    """Another dead session is neither asked nor touched."""
    clone = stores.clone_again()
    for name in (NAME, "detection-exp002"):
        held = RunLock(Refs(clone, Credentials()), name, lease=LEASE, say=str)
        held.take()
        hang(held)
    assert recover(stores.clone, run=NAME, say=str) == 0
    assert stores.refs().keys() == {"refs/runs/detection-exp002"}


def declare_copies(clone: Path, held: RunLock) -> None:
    """Store the weights of a run as a publication that dies before its commit push."""
    write_run(clone)
    with open_remotes(clone, Credentials()) as remotes:
        record = held.held()
        remotes.claim(record.repository)
        store = remotes.store
        copies = []
        for name, identity in zip(WEIGHTS, store.new_identities(len(WEIGHTS)), strict=True):
            content = (clone / name).read_bytes()
            copies.append(
                DeclaredCopy(oid=md5_of(content), size=len(content), identity=identity, store=store.address())
            )
        held.push(record.but(publishing=tuple(copies)))
        for name, copy in zip(WEIGHTS, copies, strict=True):
            assert store.create(store.path_of(copy.oid), clone / name, copy.identity)


def test_a_discarded_run_leaves_its_stop_alone(stores: Stores, lock: Make) -> None:
    """Its checkpoint, the files of that and what a failed publication stored are deleted; nothing begins it anew."""
    held = lock(stores.clone)
    with checkpoints(stores.clone, held) as publisher:
        publish_checkpoint(publisher, stores.clone)
    declare_copies(stores.clone, held)
    assert len(stores.objects()) == 2 * len(WEIGHTS)
    stop(stores, "discard")
    discard(stores.clone, Credentials(), held, str)
    assert stores.refs().keys() == {STOP}
    assert stores.objects() == {}
    assert held.record is None


def test_discarding_can_be_repeated(stores: Stores, lock: Make) -> None:
    """The host refuses the last push; nothing is deleted then, and the next call deletes all."""
    held = lock(stores.clone)
    with checkpoints(stores.clone, held) as publisher:
        publish_checkpoint(publisher, stores.clone)
    before = stores.objects()
    stores.write_hook("pre-receive", 'while read old new ref; do case "$ref" in refs/stops/*) exit 1;; esac; done')
    with pytest.raises(GitPushError):
        discard(stores.clone, Credentials(), held, str)
    assert (set(stores.refs()), stores.objects()) == ({REF, HEAD}, before)
    stores.remove_hook("pre-receive")
    discard(stores.clone, Credentials(), held, str)
    assert set(stores.refs()) == {STOP}
    assert stores.objects() == {}


@pytest.mark.parametrize(
    ("switch", "promise"),
    [
        (switches.takes_over_the_stop, test_a_stop_without_a_session_does_not_stop_the_next_one),
        (
            switches.publishes_without_its_stop,
            partial(test_a_stop_after_the_last_look_goes_with_the_commit_push, keeps_checkpoint=False),
        ),
        (switches.recovers_the_stop, test_recovery_leaves_the_stop_of_a_dead_session),
    ],
    ids=["takes-over-the-stop", "publishes-without-its-stop", "recovers-the-stop"],
)
def test_a_promise_about_stops_is_broken_when(
    stores: Stores, lock: Make, monkeypatch: pytest.MonkeyPatch, switch: Switch, promise: Callable[..., None]
) -> None:
    """With a part of rule 7 switched off, its own test fails."""
    switch(monkeypatch)
    with pytest.raises(AssertionError):
        promise(stores, lock)
