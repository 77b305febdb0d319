"""Checkpoints: private files and a branch that moves, from the first one to the finished run."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import RUN, Stores, run_git, write_run
from publications import (
    BRANCH,
    CHECKPOINT,
    checkpoints,
    identities,
    lock_of,
    models_of,
    objects_of,
    publish,
    publish_checkpoint,
    refuse,
)
from wire import Wire, at_each_copy, created_branch, leave_a_run, once

from lib.errors import DvcPushError, GitPushError, TakenOverError
from lib.remotes.credentials import Credentials
from lib.sync import (
    CheckpointPublisher,
    Published,
    Refs,
    RunLock,
    check,
    discard,
    fetch_file,
    open_remotes,
    recover,
    rehearse,
)
from lib.sync.refs import RefUpdate
from lib.sync.rehearse import BRANCHES
from lib.sync.stores.folder import FolderObjects

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of DVC's own

HEAD, K = f"refs/heads/{BRANCH}", f"refs/heads/{CHECKPOINT}"


@pytest.fixture(autouse=True)
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    """Return the boundary to the Git remote; repeated commands do not wait."""
    return Wire(monkeypatch)


class Session:
    """A session that trains in a clone: it holds the run and publishes checkpoints."""

    def __init__(self, clone: Path, lock: RunLock, publisher: CheckpointPublisher) -> None:
        self.clone, self.lock, self.publisher = clone, lock, publisher

    def save(self, epoch: int) -> str:
        """Publish the checkpoint of an epoch, and return its commit."""
        write_run(self.clone, seed=epoch)
        publish_checkpoint(self.publisher, self.clone, epoch)
        (self.clone / RUN / "checkpoint.json").unlink()
        return run_git("ls-remote", "origin", K, cwd=self.clone).split()[0]

    def finish(self, **options: Any) -> Published:
        """Publish the finished run."""
        return publish(self.clone, hold=self.lock, **options)


@contextmanager
def training(clone: Path, *, lease: float = 600.0) -> Iterator[Session]:
    """Yield a session; at the end it releases the run, as far as it holds it still."""
    lock = lock_of(clone, lease=lease)
    lock.take()
    with checkpoints(clone, lock) as publisher:
        yield Session(clone, lock, publisher)
    lock.release()


def files_of(stores: Stores) -> dict[str, bytes]:
    """Return the content of the checkpoint's files, by the end of their names."""
    found = {name: data for name, data in stores.objects().items() if name.startswith("kaggle-training-checkpoint-")}
    return {name.rpartition("-")[2]: data for name, data in found.items()} if len(found) < 3 else found


def models(clone: Path) -> dict[str, bytes]:
    """Return the weights of a clone by name."""
    return {Path(name).name: data for name, data in models_of(clone).items()}


def assert_checkpoint(stores: Stores, clone: Path, commit: str) -> None:
    """Check that the branch is at that commit, and that the DVC remote has exactly its files."""
    assert stores.refs()[K] == commit
    assert files_of(stores) == models(clone)
    text = run_git("show", f"{commit}:{RUN}/checkpoint.json", cwd=stores.origin)
    with open_remotes(stores.clone_again("reader"), Credentials()) as remotes:
        for file in json.loads(text)["files"]:
            fetch_file(remotes, file, stores.folder / "fetched")
            assert (stores.folder / "fetched").read_bytes() == (clone / file["path"]).read_bytes()
    shutil.rmtree(stores.folder / "reader")


# ── from the first one to the finished run ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("discards", [False, True], ids=["published", "discarded"])
def test_a_host_that_refuses_checkpoints_takes_the_end_of_the_run(stores: Stores, *, discards: bool) -> None:
    """No push names a branch that is not there."""
    refuse(stores, K)
    with training(stores.clone) as session:
        with pytest.raises(GitPushError):
            session.save(1)
        if discards:
            discard(stores.clone, Credentials(), session.lock)
            assert stores.refs().keys() == {session.lock.stop_ref}
        else:
            session.finish()
            assert stores.refs().keys() == {HEAD}


def test_a_checkpoint_moves_its_branch_and_deletes_the_files_of_the_old_one(stores: Stores) -> None:
    """Each commit is a child of the one before, so that a host may refuse forced pushes; its tree is code and run."""
    run_git("config", "receive.denyNonFastForwards", "true", cwd=stores.origin)
    main, trees = run_git("rev-parse", "HEAD", cwd=stores.clone), set()
    with training(stores.clone) as session:
        parent = main
        for epoch in (1, 2, 3):
            commit = session.save(epoch)
            assert_checkpoint(stores, stores.clone, commit)
            assert run_git("rev-parse", f"{commit}^", cwd=stores.origin) == parent
            trees.add(run_git("ls-tree", "-r", "--name-only", commit, cwd=stores.origin))
            parent = commit
        assert list(stores.refs()) == [K, "refs/runs/detection-exp001"]
    assert len(trees) == 1
    assert list(stores.refs()) == [K]


def test_a_later_session_goes_on_from_the_checkpoint_of_a_dead_one(stores: Stores) -> None:
    """It deletes what the dead one has left, and moves the same branch."""
    with training(stores.clone, lease=0.5) as session:
        commit = session.save(1)
        refuse(stores, K)
        with pytest.raises(GitPushError):
            session.save(2)
        assert len(files_of(stores)) == 4
        stores.remove_hook("pre-receive")
        session.lock._end()  # it dies
    other = stores.clone_again()
    with training(other, lease=0.5) as session:
        write_run(stores.clone, seed=1)
        assert_checkpoint(stores, stores.clone, commit)
        second = session.save(2)
        assert run_git("rev-parse", f"{second}^", cwd=stores.origin) == commit
        assert_checkpoint(stores, other, second)


@pytest.mark.parametrize("saved", [True, False])
def test_a_finished_run_replaces_its_checkpoint(stores: Stores, saved: bool) -> None:
    """One branch is left, with the objects that it names; there need not be a checkpoint."""
    with training(stores.clone) as session:
        if saved:
            session.save(1)
        write_run(stores.clone, seed=2)
        session.finish()
        assert list(stores.refs()) == [HEAD]
        assert stores.objects() == objects_of(stores.clone)
        assert session.finish().before
    assert check(stores.clone_again()).findings == ()


def test_a_run_may_keep_its_checkpoint(stores: Stores) -> None:
    """A later session resumes it; only the run is released."""
    with training(stores.clone) as session:
        commit = session.save(1)
        session.finish(keeps_checkpoint=True)
    assert list(stores.refs()) == [K, HEAD]
    assert_checkpoint(stores, stores.clone, commit)


# ── costs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_checkpoint_costs_one_push_and_no_other_command_to_the_remote(stores: Stores, wire: Wire) -> None:
    """Only the first one of a session reads where the branch is."""
    with training(stores.clone) as session:
        wire.commands = []
        session.save(1)
        assert [words[1] for words in wire.commands] == ["push"]
    with training(stores.clone) as session:
        for epoch in (2, 3):
            wire.commands = []
            session.save(epoch)
            assert [words[1] for words in wire.commands] == ["push"]


@pytest.mark.slow
def test_a_run_of_eleven_hours_costs_at_most_thirty_pushes(stores: Stores, wire: Wire) -> None:
    """Rehearsal, lock, 22 checkpoints and publication."""
    stores.write_hook("post-receive", f"cat > /dev/null; echo >> {stores.folder}/pushes")
    rehearse(stores.clone, say=str)
    with training(stores.clone) as session:
        for epoch in range(22):
            session.save(epoch)
        session.finish()
    received = len((stores.folder / "pushes").read_text().splitlines())
    assert received == wire.count("push") <= 30
    assert list(stores.refs()) == [HEAD]
    assert stores.objects() == objects_of(stores.clone)


# ── failures ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_refused_push_leaves_the_checkpoint_as_it_was(stores: Stores) -> None:
    """The next one that arrives deletes the files of both, and so does the finished run."""
    with training(stores.clone) as session:
        before = session.save(1), stores.objects()
        refuse(stores, "refs/heads/*")
        with pytest.raises(GitPushError):
            session.save(2)
        with pytest.raises(GitPushError):
            session.finish()
        assert stores.refs()[K] == before[0]
        assert before[1].items() < stores.objects().items()
        session.publisher.end()
        assert stores.objects() == before[1]
        stores.remove_hook("pre-receive")
        assert_checkpoint(stores, stores.clone, session.save(3))
        refuse(stores, K)
        with pytest.raises(GitPushError):
            session.save(4)
        stores.remove_hook("pre-receive")
        session.finish()
    assert list(stores.refs()) == [HEAD]
    assert stores.objects() == objects_of(stores.clone)


@pytest.mark.parametrize("kind", ["lost", "late"])
def test_a_push_without_an_answer_is_repeated_or_counts_as_done(stores: Stores, wire: Wire, kind: str) -> None:
    """The run's ref shows whether it has happened."""
    with training(stores.clone) as session:
        session.save(1)
        wire.fault = once(created_branch, kind)
        assert_checkpoint(stores, stores.clone, session.save(2))
        assert_checkpoint(stores, stores.clone, session.save(3))


def test_a_push_that_arrives_after_it_was_given_up_is_rejected(stores: Stores, wire: Wire) -> None:
    """Its files are deleted only after a later push has moved the run's ref."""
    late: list[list[str]] = []

    def fault(words: list[str]) -> str:
        if created_branch(words):
            late.append(words)
        return "late"

    with training(stores.clone) as session:
        first = session.save(1)
        wire.fault = fault
        with pytest.raises(GitPushError):
            session.save(2)
        wire.heal()
        assert len(files_of(stores)) == 4
        session.publisher.end()
        write_run(stores.clone, seed=1)
        assert_checkpoint(stores, stores.clone, first)
        assert subprocess.run(late[0], cwd=stores.clone, capture_output=True).returncode
        assert_checkpoint(stores, stores.clone, first)


def test_a_push_that_arrives_after_it_was_given_up_and_before_the_next_one_counts(stores: Stores, wire: Wire) -> None:
    """The next checkpoint is its child; no file of either is deleted too early."""
    late: list[list[str]] = []

    def fault(words: list[str]) -> str:
        late.extend([words] * bool(created_branch(words)))
        return "late"

    with training(stores.clone) as session:
        session.save(1)
        wire.fault = fault
        with pytest.raises(GitPushError):
            session.save(2)
        wire.heal()
        run_git(*late[0][1:], cwd=stores.clone)
        second = stores.refs()[K]
        third = session.save(3)
        assert run_git("rev-parse", f"{third}^", cwd=stores.origin) == second
        assert_checkpoint(stores, stores.clone, third)


def test_an_upload_that_fails_leaves_the_checkpoint_as_it_was(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next checkpoint deletes what has arrived."""

    def fill_up(number: int, _path: Path) -> None:
        if number == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    with training(stores.clone) as session:
        commit = session.save(1)
        with monkeypatch.context() as patch:
            at_each_copy(patch, fill_up)
            with pytest.raises(OSError, match="No space left"):
                session.save(2)
        assert stores.refs()[K] == commit
        assert_checkpoint(stores, stores.clone, session.save(3))


def test_a_file_that_is_written_during_its_upload_is_not_published(
    stores: Stores, monkeypatch: pytest.MonkeyPatch, wire: Wire
) -> None:
    """Its size and its time are those of the file that was hashed."""
    with training(stores.clone) as session:
        commit = session.save(1)
        real = FolderObjects.create

        def write_again(store: FolderObjects, path: str, source: Path, *rest: Any) -> Any:
            before = source.stat()
            source.write_bytes(source.read_bytes()[::-1])
            os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
            return real(store, path, source, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(FolderObjects, "create", write_again)
            with pytest.raises(DvcPushError, match="has other content"):
                session.save(2)
        assert stores.refs()[K] == commit
        assert_checkpoint(stores, stores.clone, session.save(3))


def test_files_that_cannot_be_deleted_are_deleted_later(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the next checkpoint; after the finished run, by `recover`."""
    real = FolderObjects.delete

    def fail(store: FolderObjects, path: str, identity: str) -> None:
        if path.endswith(".pt"):  # not a trial of the store
            raise DvcPushError("not now")
        real(store, path, identity)

    lines: list[str] = []
    with training(stores.clone) as session:
        session.save(1)
        with monkeypatch.context() as patch:
            patch.setattr(FolderObjects, "delete", fail)
            session.save(2)
        assert len(files_of(stores)) == 4
        assert_checkpoint(stores, stores.clone, session.save(3))
        with monkeypatch.context() as patch:
            patch.setattr(FolderObjects, "delete", fail)
            session.finish(say=lines.append)
    assert any("published, but not cleaned up" in line for line in lines)
    assert len(files_of(stores)) == 2
    other = stores.clone_again()
    assert check(other).is_healthy
    assert recover(other, say=str) == 0
    assert list(stores.refs()) == [HEAD]
    assert stores.objects() == objects_of(stores.clone)


def test_a_branch_that_was_deleted_by_hand_comes_back(stores: Stores) -> None:
    """The run's ref is still ours: nobody else trains."""
    with training(stores.clone) as session:
        session.save(1)
        run_git("update-ref", "-d", K, cwd=stores.origin)
        assert_checkpoint(stores, stores.clone, session.save(2))
        run_git("update-ref", "-d", K, cwd=stores.origin)
        session.finish()
    assert list(stores.refs()) == [HEAD]
    assert stores.objects() == objects_of(stores.clone)


def test_a_session_that_was_taken_over_moves_nothing(stores: Stores) -> None:
    """It neither publishes nor deletes; the other session sweeps what it has left."""
    with training(stores.clone) as slept:
        slept.save(1)
        refs = Refs(other := stores.clone_again(), Credentials())
        (run,) = refs.read_runs().values()
        assert run.record is not None
        refs.push(RefUpdate(f"refs/runs/{run.name}", run.commit, refs.write_record(run.record.but(session="0" * 16))))
        before = stores.refs(), identities(stores)
        with pytest.raises(TakenOverError):
            slept.save(2)
        with pytest.raises(TakenOverError):
            slept.finish()
        assert (stores.refs(), {path: before[1].get(path) for path in before[1]}) == before
    run_git("update-ref", "-d", f"refs/runs/{run.name}", cwd=stores.origin)
    with training(other) as session:
        assert len(files_of(stores)) == 2
        assert_checkpoint(stores, other, session.save(3))


# ── what else is on the remotes ───────────────────────────────────────────────────────────────────────────────────────


def test_a_branch_whose_name_ends_like_the_checkpoints_is_untouched(stores: Stores) -> None:
    """`git ls-remote` also lists refs whose names only end in the requested one."""
    names = (K, "refs/runs/detection-exp001", "refs/asks/detection-exp001", f"refs/heads/{BRANCHES}0")
    backups = [f"refs/heads/backup/{name}" for name in names]
    for backup in backups:
        run_git("push", "--quiet", "origin", f"HEAD:{backup}", cwd=stores.clone)
    rehearse(stores.clone, say=str)
    with training(stores.clone) as session:
        session.save(1)
        session.finish()
    assert sorted(stores.refs()) == sorted([*backups, HEAD])


def test_a_checkpoint_of_another_run_stays(stores: Stores) -> None:
    """Also of one whose name begins in the same way."""
    with training(stores.clone) as session:
        commit = session.save(1)
    longer = lock_of(other := stores.clone_again(), "detection-exp001-2")
    longer.take()
    with checkpoints(other, longer) as publisher:
        write_run(other, seed=2)
        publish_checkpoint(publisher, other)
        assert len(files_of(stores)) == 4
    with training(stores.clone) as session:
        session.save(3)
        assert len(files_of(stores)) == 4
        session.finish()
    longer.release()
    assert sorted(stores.refs()) == sorted([f"{K}-2", HEAD])
    assert files_of(stores) == models(other)
    assert commit


def test_a_dataset_that_only_an_old_checkpoint_names_is_kept(stores: Stores) -> None:
    """The run was trained from a branch with a dataset, which is deleted; then training starts over from `main`."""
    from dvc.repo import Repo

    (stores.clone / "data.zip").write_bytes(b"a dataset")
    with Repo(str(stores.clone)) as repo:
        repo.add([str(stores.clone / "data.zip")])
        repo.push()
    dataset = stores.objects()
    main = run_git("rev-parse", "HEAD", cwd=stores.clone)
    run_git("add", "data.zip.dvc", ".gitignore", cwd=stores.clone)
    run_git("commit", "--quiet", "--message=data", cwd=stores.clone)
    with training(stores.clone) as session:
        session.save(1)
    run_git("switch", "--quiet", "--detach", main, cwd=stores.clone)
    with training(stores.clone) as session:
        commit = session.save(2)
        assert "data.zip.dvc" not in run_git("ls-tree", "--name-only", commit, cwd=stores.origin)
        refuse(stores, HEAD)
        with pytest.raises(GitPushError):
            session.finish()
        stores.remove_hook("pre-receive")
        session.finish()
    assert stores.objects() == objects_of(stores.clone) | dataset


@pytest.mark.slow
def test_a_repository_with_thousands_of_dvc_files_publishes(stores: Stores, wire: Wire) -> None:
    """Checkpoints, a roll back that reads them all, and a run's ref with as many declared copies."""
    text = "outs:\n- md5: {0:032x}\n  size: 1\n  hash: md5\n  path: {0}\n"
    lines = ["commit refs/heads/main", "committer A <a@b> 0 +0000", "data 0", "from refs/heads/main^0"]
    for number in range(3000):
        blob = text.format(number)
        lines += [f"M 100644 inline data/{number % 50}/{number}.dvc", f"data {len(blob)}", blob]
    words = ["git", "fast-import", "--quiet"]
    subprocess.run(words, cwd=stores.origin, check=True, input="\n".join([*lines, ""]), text=True)
    run_git("pull", "--quiet", "--ff-only", "origin", "main", cwd=stores.clone)
    with training(stores.clone) as session:
        assert_checkpoint(stores, stores.clone, session.save(1))
        refuse(stores, HEAD)
        with pytest.raises(GitPushError, match="no new object"):
            session.finish()
        assert list(stores.refs()) == [K, "refs/runs/detection-exp001"]
        stores.remove_hook("pre-receive")
        session.finish()
    leave_a_run(wire, stores.clone, "kaggle-train-x")
    assert recover(stores.clone, patience=0, say=str) == 0
    assert stores.objects() == objects_of(stores.clone)
