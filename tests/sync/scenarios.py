"""Scenarios of the fault suite: what the remotes contain, what is done, and which other process is active."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from conftest import RUN, WEIGHTS, Stores, run_git
from faults import (
    DIES,
    Call,
    Died,
    DvcRemote,
    FaultInjector,
    creates_a_branch,
    identity_of,
    is_deletion,
    moves_a_checkpoint,
    pausing,
)
from publications import (
    BRANCH,
    CHECKPOINT,
    OTHER,
    checkpoints,
    lock_of,
    md5_of,
    object_name,
    objects_of,
    publication,
    publish,
)

from lib.errors import SyncError
from lib.sync import Published, RunLock, recover

HEAD, CHECKPOINT_HEAD = f"refs/heads/{BRANCH}", f"refs/heads/{CHECKPOINT}"
BY_HAND = "refs/heads/by-hand"


@dataclass(frozen=True)
class Scenario:
    """What the remotes contain, what is done, which other process is active, and which branches are refused."""

    name: str
    prepare: Callable[[Stores, DvcRemote], object] = lambda _stores, _remote: None
    peer: Callable[[Path, Callable[[], None]], object] | None = None
    """What another clone does meanwhile; it calls its second argument to pause."""
    refuses: str = ""
    """The branch that the Git remote refuses; calls are then counted from the refusal: those of the roll back."""
    whole: bool = False
    """Whether calls are counted from the first one, although a branch is refused."""
    recovers: bool = False
    """Whether faults hit the recovery of a dead publication, instead of a publication."""
    cold: bool = False
    """Whether nothing was ever published: the repository's identity and the clone's mirror must be created first."""
    holds: bool = False
    """Whether a session holds its run, publishes two checkpoints, and then publishes the run."""
    interrupted: bool = False
    """Whether the session ends before its training does: its checkpoint stays."""
    is_lost: bool = False
    """Whether the peer takes the run over."""

    @property
    def fails(self) -> bool:
        """Return whether the publication fails without any fault."""
        return self.refuses == BRANCH

    @property
    def ends_checkpoint(self) -> bool:
        """Return whether the publication deletes the checkpoint."""
        return self.holds and not self.interrupted

    def publish(self, clone: Path) -> Published:
        """Publish the run of a clone as this scenario does."""
        if not self.holds:
            return publish(clone)
        is_published = bool(run_git("ls-remote", "origin", HEAD, cwd=clone))
        return train(clone, BRANCH, checkpoints=0 if is_published else 2, interrupted=self.interrupted)


def train(clone: Path, branch: str = "", *, checkpoints: int, interrupted: bool = False) -> Published:
    """Hold the run, publish checkpoints and then `branch`, if any; as in a training, a failed checkpoint is skipped."""
    try:
        lock = lock_of(clone)
        lock.take()
    except Exception as error:
        raise SyncError("nothing was trained", remedy="start again") from error
    try:
        if checkpoints:
            publish_checkpoints(clone, lock, checkpoints)
        if branch:
            return publish(clone, branch, hold=lock, keeps_checkpoint=interrupted)
        return Published("", "", 0)
    finally:
        lock.release()


def publish_checkpoints(clone: Path, lock: RunLock, count: int) -> None:
    """Publish checkpoints as a training does: its errors are reported and the next checkpoint is tried."""
    folder = clone.with_name(f"{clone.name}-checkpoint")
    shutil.copytree(clone / RUN, folder, dirs_exist_ok=True)
    run = replace(publication(clone, CHECKPOINT), source=folder)
    with contextlib.suppress(Exception), checkpoints(clone, lock) as publisher:
        for epoch in range(1, count + 1):
            (folder / "train/weights/last.pt").write_bytes(f"epoch {epoch}\n".encode() * 300)
            with contextlib.suppress(Exception):
                publisher.publish(run, {"epoch": epoch})
        publisher.end()


# ── what the remotes contain ──────────────────────────────────────────────────────────────────────────────────────────


def one_object_is_stored_already(stores: Stores, remote: DvcRemote) -> None:
    """Store an unrelated copy of one of the two objects, which no branch names."""
    content = (stores.clone / WEIGHTS[0]).read_bytes()
    remote.put(object_name(md5_of(content)), content)


def the_same_is_published(stores: Stores, _remote: DvcRemote) -> None:
    """Publish the same content from another clone."""
    publish(stores.folder / "peer", OTHER)


def another_died_before_its_push(stores: Stores, _remote: DvcRemote) -> None:
    """Declare and store the same objects from another clone, and kill it right before its commit push."""
    _die(creates_a_branch, lambda: publish(stores.folder / "peer", OTHER))


def we_died_before_our_push(stores: Stores, _remote: DvcRemote) -> None:
    """Declare and store the objects from the clone itself, and kill it right before its commit push."""
    _die(creates_a_branch, lambda: publish(stores.clone))


def a_session_was_interrupted(stores: Stores, _remote: DvcRemote) -> None:
    """Publish a checkpoint from another clone, whose session then ends."""
    train(stores.folder / "peer", checkpoints=1)


def a_session_died_before_its_push(stores: Stores, _remote: DvcRemote) -> None:
    """Publish checkpoints from another clone, and kill it right before the commit push of its finished run."""
    _die(creates_a_branch, lambda: train(stores.folder / "peer", OTHER, checkpoints=1))


def a_session_died_at_a_checkpoint(stores: Stores, _remote: DvcRemote) -> None:
    """Publish a checkpoint from another clone, and kill its next session right before it moves the branch."""
    a_session_was_interrupted(stores, _remote)
    _die(moves_a_checkpoint, lambda: train(stores.folder / "peer", OTHER, checkpoints=1))


def _die(before: Callable[[Call], bool], work: Callable[[], object]) -> None:
    with pytest.raises(Died), FaultInjector(replace(DIES, applies=before), 1).installed():
        work()


# ── what another clone does ───────────────────────────────────────────────────────────────────────────────────────────


def publish_and_pause(clone: Path, pause: Callable[[], None]) -> None:
    """Publish the same content under another name, and pause right before the commit push."""
    with _pausing_at(creates_a_branch, pause):
        publish(clone, OTHER)


def recover_and_pause(clone: Path, pause: Callable[[], None]) -> None:
    """Recover dead publications, and pause right before the first object is deleted."""
    with _pausing_at(is_deletion, pause):
        recover(clone, say=str)


def checkpoint_and_pause(clone: Path, pause: Callable[[], None]) -> None:
    """Train until interrupted, and pause right before the checkpoint branch is moved."""
    with _pausing_at(moves_a_checkpoint, pause):
        train(clone, checkpoints=1)


def pause_and_recover(clone: Path, pause: Callable[[], None]) -> None:
    """Recover what is known to be dead without asking."""
    pause()
    recover(clone, patience=0, say=str)


def pause_and_take_over(clone: Path, pause: Callable[[], None]) -> None:
    """Take the run over, publish a checkpoint and end; print its commit if the run was held by another session."""
    pause()
    is_held = run_git("ls-remote", "origin", "refs/runs/*", cwd=clone)
    train(clone, checkpoints=1)
    if is_held:
        print("checkpoint", run_git("ls-remote", "origin", CHECKPOINT_HEAD, cwd=clone).split()[0])


def pause_and_store(clone: Path, pause: Callable[[], None]) -> None:
    """Store the same content as `dvc push` does where it is not there, and print the copies."""
    pause()
    for path, content in objects_of(clone).items():
        target = clone.parent / "storage" / path
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            print("stored", path, identity_of(target))


def pause_and_publish_by_hand(clone: Path, pause: Callable[[], None]) -> None:
    """Publish the same content as DVC's commands do: copies that are there are used, and a branch names them.

    Prints the copies that were stored.
    """
    pause_and_store(clone, pause)
    for name in WEIGHTS:
        content = (clone / name).read_bytes()
        path = Path(name)
        text = f"outs:\n- md5: {md5_of(content)}\n  size: {len(content)}\n  hash: md5\n  path: {path.name}\n"
        (clone / f"{name}.dvc").write_text(text, encoding="utf-8")
        run_git("add", "--force", f"{name}.dvc", cwd=clone)
    run_git("commit", "--quiet", "--message=by hand", cwd=clone)
    run_git("push", "--quiet", "origin", f"HEAD:{BY_HAND}", cwd=clone)


@contextlib.contextmanager
def _pausing_at(applies: Callable[[Call], bool], pause: Callable[[], None]) -> Iterator[None]:
    with FaultInjector(pausing(pause, applies), 1).installed():
        yield


# ── scenarios ─────────────────────────────────────────────────────────────────────────────────────────────────────────

ALONE = Scenario("alone")
COLD = Scenario("alone, for the first time", cold=True)
STRANGER = Scenario("an object is stored already", one_object_is_stored_already)
PUBLISHED = Scenario("the same is published", the_same_is_published)
DEAD = Scenario("another died", another_died_before_its_push)
CONCURRENT = Scenario("another publishes", peer=publish_and_pause)
ROLLING_BACK = Scenario("another is rolled back", another_died_before_its_push, recover_and_pause)
STORED_MEANWHILE = Scenario("a person stores the same", peer=pause_and_store)
PUBLISHED_MEANWHILE = Scenario("a person publishes the same", peer=pause_and_publish_by_hand)

SESSION = Scenario("a session", holds=True)
INTERRUPTED = Scenario("an interrupted session", a_session_was_interrupted, holds=True, interrupted=True)
TAKING_OVER = Scenario("a session takes over", a_session_died_before_its_push, holds=True)
RESUMING = Scenario("a session takes over a checkpoint", a_session_died_at_a_checkpoint, holds=True)
TAKEN_OVER = Scenario("a session is taken over", peer=pause_and_take_over, holds=True, is_lost=True)
SWEPT = Scenario("others sweep", a_session_was_interrupted, pause_and_recover, holds=True, interrupted=True)

RECOVERY = Scenario("recovery", we_died_before_our_push, recovers=True)
RECOVERY_OF_A_SESSION = Scenario("recovery of a session", a_session_died_before_its_push, recovers=True)
RECOVERY_OF_A_CHECKPOINT = Scenario("recovery of a checkpoint", a_session_died_at_a_checkpoint, recovers=True)
RECOVERY_MEANWHILE = Scenario(
    "recovery while a session trains", a_session_was_interrupted, checkpoint_and_pause, recovers=True
)


def refused(scenario: Scenario, branch: str = BRANCH, *, whole: bool = False) -> Scenario:
    """Return the scenario with a refused branch; the calls of the roll back are counted, or with `whole` all calls."""
    return replace(scenario, name=f"{scenario.name}, {branch[:12]} refused", refuses=branch, whole=whole)
