"""Switches that each turn off one rule of the protocol; a sweep must then find the damage that the rule prevents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from lib.sync import publish as publish_module
from lib.sync.checkpoints import CheckpointPublisher
from lib.sync.lock import RunLock
from lib.sync.publication import Publication, Say
from lib.sync.record import STOPS, RunRecord
from lib.sync.refs import ANY, Refs, RefUpdate, SeenRun
from lib.sync.remotes import Remotes
from lib.sync.stores.base import StoredCopy
from lib.sync.stores.folder import FolderObjects
from lib.sync.stores.gdrive import DriveObjects
from lib.sync.stores.s3 import S3Objects

Switch = Callable[[pytest.MonkeyPatch], None]


def pushes_branches_alone(patch: pytest.MonkeyPatch) -> None:
    """Create and move branches even if the run's ref has moved."""
    push = Refs.push

    def push_twice(refs: Refs, *updates: RefUpdate) -> None:
        heads = [update for update in updates if update.new and update.ref.startswith("refs/heads/")]
        for part in (heads, [update for update in updates if update not in heads]):
            if part:
                push(refs, *part)

    patch.setattr(Refs, "push", push_twice)


def declares_nothing(patch: pytest.MonkeyPatch) -> None:
    """Store copies that the run's ref does not name."""
    but = RunRecord.but
    patch.setattr(RunRecord, "but", lambda record, **values: but(record, **values | {"publishing": ()}))


def inherits_nothing(patch: pytest.MonkeyPatch) -> None:
    """Take a run over without the list of what its dead session has stored."""
    take = RunLock._take

    def take_without(lock: RunLock, old: SeenRun | None, identity: str | None) -> bool:
        if old is not None and old.record is not None:
            old = replace(old, record=old.record.but(publishing=(), undo=()))
        return take(lock, old, identity)

    patch.setattr(RunLock, "_take", take_without)


def deletes_before_the_fence(patch: pytest.MonkeyPatch) -> None:
    """Roll back without moving the run's ref first."""
    roll_back = publish_module._Publishing._roll_back_remotes

    def delete_first(publishing: publish_module._Publishing) -> bool:
        lock, remotes = publishing.lock, publishing.remotes
        if lock.record is not None:
            remotes.delete(lock.record.declared, lock, str)
        return roll_back(publishing)

    patch.setattr(publish_module._Publishing, "_roll_back_remotes", delete_first)


def drops_its_run_first(patch: pytest.MonkeyPatch) -> None:
    """Delete the run's ref before the copies that it names."""

    def push_first(remotes: Remotes, lock: RunLock, say: Say, *, last: bool = False) -> None:
        record = lock.record
        assert record is not None
        lock.push(None if last else record.but(publishing=(), undo=()))
        patch.setattr(lock, "reread", lambda: None)
        remotes.delete(record.declared, lock, say)

    patch.setattr(Remotes, "roll_back", push_first)


def reads_nothing_after_a_failure(patch: pytest.MonkeyPatch) -> None:
    """Take a push whose answer was lost for one that has failed."""
    patch.setattr(RunLock, "_has_happened", lambda *_: False)


def keeps_nothing(patch: pytest.MonkeyPatch) -> None:
    """Delete objects that a branch names."""
    patch.setattr(Refs, "named_objects", lambda *_: set())


def overwrites(patch: pytest.MonkeyPatch) -> None:
    """Replace the copy that a folder has under an object's path."""
    patch.setattr(FolderObjects, "_show", lambda _store, part, target: part.replace(target))


def deletes_every_copy(patch: pytest.MonkeyPatch) -> None:
    """Delete whatever is stored under an object's path, whoever has stored it."""
    for store in (DriveObjects, S3Objects):
        delete: Callable[[Any, str, str], None] = store.delete

        def delete_all(store: Any, path: str, _identity: str, delete: Any = delete) -> None:
            for copy in store.find(path):
                delete(store, path, copy.identity)

        patch.setattr(store, "delete", delete_all)


def relies_on_others(patch: pytest.MonkeyPatch) -> None:
    """Rely on a copy that another run may still delete."""
    patch.setattr(publish_module._Publishing, "_is_declared_by_others", lambda *_: False)


def does_not_verify(patch: pytest.MonkeyPatch) -> None:
    """Push the branch without checking the objects."""
    patch.setattr(publish_module._Publishing, "_verify", lambda *_: None)


def deletes_old_files_first(patch: pytest.MonkeyPatch) -> None:
    """Delete the files of a checkpoint before the next one is published."""
    publish = CheckpointPublisher.publish

    def delete_and_publish(publisher: CheckpointPublisher, run: Publication, record: Mapping[str, object]) -> int:
        for name in publisher._named:
            publisher._remotes.store.delete(name, publisher._files[name])
        return publish(publisher, run, record)

    patch.setattr(CheckpointPublisher, "publish", delete_and_publish)


def sweeps_named_files(patch: pytest.MonkeyPatch) -> None:
    """Sweep files that a checkpoint names."""
    patch.setattr(Remotes, "named_files", lambda *_: set())


def sweeps_files_of_the_living(patch: pytest.MonkeyPatch) -> None:
    """Sweep files whose session holds the run."""
    waste = Remotes.waste

    def waste_of_the_dead(remotes: Remotes, *words: Any) -> dict[str, list[StoredCopy]]:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(remotes.refs, "read_runs", lambda *_: {})
            return waste(remotes, *words)

    patch.setattr(Remotes, "waste", waste_of_the_dead)


def lists_files_last(patch: pytest.MonkeyPatch) -> None:
    """Read the checkpoints, then the runs, and list the files last."""
    waste = Remotes.waste

    def list_last(remotes: Remotes, repository: str, run: str = "") -> dict[str, list[StoredCopy]]:
        named, runs = remotes.named_files(run), remotes.refs.read_runs(run)
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(remotes, "named_files", lambda *_: named)
            inner.setattr(remotes.refs, "read_runs", lambda *_: runs)
            return waste(remotes, repository, run)

    patch.setattr(Remotes, "waste", list_last)


def takes_over_the_stop(patch: pytest.MonkeyPatch) -> None:
    """Leave the stop of an earlier session when the run is taken."""
    take = RunLock._take
    patch.setattr(RunLock, "_take", lambda lock, old, identity, *_: take(lock, old, identity))


def publishes_without_its_stop(patch: pytest.MonkeyPatch) -> None:
    """Leave the stop in the commit push."""
    push = Refs.push

    def push_the_others(refs: Refs, *updates: RefUpdate) -> None:
        creates = any(update.new and update.ref.startswith("refs/heads/kaggle-train-") for update in updates)
        push(refs, *(update for update in updates if not (creates and update.ref.startswith(STOPS))))

    patch.setattr(Refs, "push", push_the_others)


def recovers_the_stop(patch: pytest.MonkeyPatch) -> None:
    """Delete the stop of a dead session when its run is recovered."""
    roll_back = Remotes.roll_back

    def roll_back_all(remotes: Remotes, lock: RunLock, say: Say, *, last: bool = False) -> None:
        roll_back(remotes, lock, say, last=last)
        remotes.refs.push(RefUpdate(lock.stop_ref, ANY, None))

    patch.setattr(Remotes, "roll_back", roll_back_all)
