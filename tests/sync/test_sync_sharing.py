"""One DVC remote and several repositories, forks, branches or places; one repository whose history changes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import RUN, WEIGHTS, Stores, run_git, write_run
from git_host_emulator import GitHost
from publications import (
    BRANCH,
    CHECKPOINT,
    OTHER,
    checkpoints,
    lock_of,
    md5_of,
    objects_of,
    publication,
    publish,
    publish_checkpoint,
    refuse,
)
from wire import Wire, assert_branches_are_complete, leave_a_run

from lib.errors import DvcPushError, GitPushError
from lib.remotes.credentials import Credentials
from lib.sync import Refs, RunLock, check, recover
from lib.sync.record import DeclaredCopy
from lib.sync.remotes import REPOSITORY

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of DVC's own

HEAD = f"refs/heads/{BRANCH}"


@pytest.fixture(autouse=True)
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    """Return the boundary to the Git remote; repeated commands do not wait."""
    return Wire(monkeypatch)


def save(clone: Path, *seeds: int) -> None:
    """Publish checkpoints with these seeds in one session."""
    lock = lock_of(clone)
    lock.take()
    with checkpoints(clone, lock) as publisher:
        for seed in seeds:
            write_run(clone, seed=seed)
            publish_checkpoint(publisher, clone)
    lock.release()


def fail(clone: Path, stores: Stores) -> str:
    """Publish a run that the Git remote refuses, and return the state that is reported."""
    refuse(stores, "refs/heads/kaggle-train-*")
    with pytest.raises(GitPushError) as caught:
        publish(clone, OTHER)
    stores.remove_hook("pre-receive")
    return caught.value.state


# ── several repositories ──────────────────────────────────────────────────────────────────────────────────────────────


def marks(stores: Stores) -> set[str]:
    """Return the repositories that have marked the DVC remote."""
    return {path.name.rpartition("-")[2] for path in stores.storage.glob("kaggle-training-repository-*")}


def identity_of(stores: Stores) -> str:
    """Return the identity of the repository as marks have it."""
    return run_git("for-each-ref", "--format=%(objectname)", "refs/kaggle/", cwd=stores.origin)[:16]


@pytest.fixture
def guest(stores: Stores) -> Stores:
    """Return another repository with the same DVC remote, and a run with the same content that is not published."""
    folder = stores.folder / "guest"
    guest = replace(stores, folder=folder, origin=folder / "origin.git", clone=folder / "clone")
    run_git("init", "--quiet", "--bare", "--template=", "--initial-branch=main", guest.origin, cwd=stores.folder)
    run_git("clone", "--quiet", guest.origin, guest.clone, cwd=stores.folder)
    shutil.copytree(stores.clone / ".dvc", guest.clone / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache"))
    run_git("add", "--all", cwd=guest.clone)
    run_git("commit", "--quiet", "--message=another project", cwd=guest.clone)
    run_git("push", "--quiet", "origin", "HEAD:main", cwd=guest.clone)
    write_run(guest.clone)
    return guest


@pytest.fixture(params=["fork", "mirror"])
def fork(stores: Stores, request: pytest.FixtureRequest) -> Stores:
    """Return a fork of the repository, which has its branches, or a mirror, which has every ref; both after a run."""
    publish(stores.clone)
    save(stores.clone, 1)
    lock = lock_of(stores.clone, "another")
    lock.take()  # a run is under way
    folder = stores.folder / "fork"
    folder.mkdir()
    fork = replace(stores, folder=folder, origin=folder / "origin.git", clone=folder / "clone")
    option = "--bare" if request.param == "fork" else "--mirror"
    run_git("clone", "--quiet", option, stores.origin, fork.origin, cwd=folder)
    run_git("clone", "--quiet", fork.origin, fork.clone, cwd=folder)
    lock.release()
    return fork


def test_the_first_publication_marks_the_dvc_remote_as_its_repositorys(stores: Stores) -> None:
    """Once, from any clone."""
    publish(stores.clone)
    assert marks(stores) == {identity_of(stores)}
    other = stores.clone_again()
    run_git("fetch", "--quiet", "--depth=1", cwd=other)
    write_run(other, seed=2)
    publish(other, OTHER)
    assert marks(stores) == {identity_of(stores)}


def test_nothing_is_deleted_from_a_shared_dvc_remote(stores: Stores, guest: Stores) -> None:
    """Both publish; when one fails, what it has stored stays, and the error gives the reason."""
    publish(stores.clone)
    lines: list[str] = []
    write_run(guest.clone, seed=7)
    publish(guest.clone, say=lines.append)
    assert any("is shared with another repository" in line for line in lines)
    for stores_, seed in ((guest, 8), (stores, 9)):
        write_run(stores_.clone, seed=seed)
        state = fail(stores_.clone, stores_)
        assert "what was uploaded stays, since" in state
        assert "no new object" not in state
        assert stores_.runs() == []
    assert len(stores.objects()) == 8
    assert marks(stores) == {identity_of(stores), identity_of(guest)}


def test_a_guest_that_publishes_what_is_there_keeps_it(stores: Stores, guest: Stores, wire: Wire) -> None:
    """The owner has stored it and died; its recovery finds the guest's mark."""
    leave_a_run(wire, stores.clone, BRANCH)
    assert publish(guest.clone).uploaded == 0
    assert recover(stores.clone, patience=0, say=str) == 0
    assert stores.refs() == {}
    assert_branches_are_complete(guest)


def test_a_guest_keeps_its_objects_after_the_owners_mark_was_deleted(stores: Stores, guest: Stores, wire: Wire) -> None:
    """A mark that is not the owner's own is enough: how many there are says nothing."""
    leave_a_run(wire, stores.clone, BRANCH)
    publish(guest.clone)
    (stores.storage / f"{REPOSITORY}{identity_of(stores)}").unlink()
    assert recover(stores.clone, patience=0, say=str) == 0
    assert_branches_are_complete(guest)


@pytest.mark.parametrize("stays", ["named", "shared"])
def test_what_a_killed_upload_has_left_is_deleted_where_its_copy_stays(
    stores: Stores, guest: Stores, wire: Wire, stays: str
) -> None:
    """A private file is nobody else's, even if the object is named by a branch, or others publish there."""
    leave_a_run(wire, stores.clone, BRANCH)
    (run,) = Refs(stores.clone, Credentials()).read_runs().values()
    assert run.record is not None
    for copy in run.record.declared:
        path = stores.object_path(copy.oid)
        path.with_name(f".{path.name}.{copy.identity}.part").write_bytes(b"half")
    if stays == "shared":
        publish(guest.clone)
    else:
        outs = "".join(f"- md5: {copy.oid}\n  path: {copy.oid}\n" for copy in run.record.declared)
        (stores.clone / "kept.dvc").write_text(f"outs:\n{outs}")
        run_git("add", "kept.dvc", cwd=stores.clone)
        run_git("commit", "--quiet", "--message=kept", cwd=stores.clone)
        run_git("push", "--quiet", "origin", "HEAD:kept", cwd=stores.clone)
    kept = {path: content for path, content in stores.objects().items() if not path.endswith(".part")}
    assert recover(stores.clone, patience=0, say=str) == 0
    assert stores.objects() == kept
    assert len(kept) == len(WEIGHTS)


def test_check_names_the_others_of_a_shared_dvc_remote(stores: Stores, guest: Stores) -> None:
    """This is a remark; their objects are not reported."""
    publish(stores.clone)
    write_run(guest.clone, seed=7)
    publish(guest.clone)
    checked = check(guest.clone)
    assert checked.is_healthy
    assert [finding.kind for finding in checked.findings] == ["foreign"]
    assert identity_of(stores) in checked.findings[0].what


def test_a_fork_keeps_the_first_repositorys_files(stores: Stores, fork: Stores) -> None:
    """It moves its checkpoint, rolls a run back, and publishes the finished run."""
    before = stores.refs(), stores.objects()
    save(fork.clone, 2, 3)
    write_run(fork.clone, seed=1)
    fail(fork.clone, fork)
    publish(fork.clone, OTHER)
    recover(fork.clone, patience=0, say=str)
    assert stores.refs() == before[0]
    assert before[1].items() <= stores.objects().items()
    assert check(stores.clone).is_healthy
    save(stores.clone, 4)
    assert check(fork.clone).is_healthy


# ── one repository, changed ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_rewritten_history_changes_nothing(stores: Stores) -> None:
    """Neither does a branch that each deploy makes anew: later runs are rolled back and cleaned up as before."""

    def make_anew(branch: str) -> None:
        commit = run_git("commit-tree", "HEAD^{tree}", "-m", f"{branch} anew", cwd=stores.clone)
        run_git("push", "--quiet", "--force", "origin", f"{commit}:refs/heads/{branch}", cwd=stores.clone)

    make_anew("gh-pages")
    publish(stores.clone)
    save(stores.clone, 1)
    make_anew("gh-pages")
    make_anew("main")
    other = stores.clone_again()
    save(other, 2)
    assert len(stores.objects()) == 4
    write_run(other, seed=3)
    assert "no new object" in fail(other, stores)
    assert len(stores.objects()) == 4
    assert len(marks(stores)) == 1
    assert [finding.kind for finding in check(other).findings] == []


@pytest.mark.parametrize("keeps", ["nothing", "times"])
def test_a_strangers_object_stays_on_a_folder_that_was_copied(stores: Stores, wire: Wire, keeps: str) -> None:
    """With new times no copy is known any more: all are kept. With the old ones, ours alone are deleted."""
    first = stores.object_path(md5_of((stores.clone / WEIGHTS[0]).read_bytes()))
    first.parent.mkdir(parents=True)
    shutil.copyfile(stores.clone / WEIGHTS[0], first)
    leave_a_run(wire, stores.clone, BRANCH)
    assert len(stores.objects()) == 2
    old = stores.storage.rename(stores.folder / "old")
    shutil.copytree(old, stores.storage, copy_function=shutil.copyfile if keeps == "nothing" else shutil.copy2)
    shutil.rmtree(old)
    assert recover(stores.clone, patience=0, say=str) == 0
    assert stores.refs() == {}
    assert first.exists()
    assert len(stores.objects()) == (2 if keeps == "nothing" else 1)
    publish(stores.clone)
    assert stores.objects() == objects_of(stores.clone)


# ── other places ──────────────────────────────────────────────────────────────────────────────────────────────────────


def configure(clone: Path, address: str | Path) -> None:
    """Make another default DVC remote and commit it, as a relative path or an absolute one."""
    (clone / ".dvc" / address).mkdir(exist_ok=True)
    text = f"[core]\n    remote = elsewhere\n['remote \"elsewhere\"']\n    url = {address}\n"
    (clone / ".dvc/config").write_text(text, encoding="utf-8")
    run_git("commit", "--quiet", "--all", "--message=another DVC remote", cwd=clone)


def test_a_relative_path_reaches_the_folder(stores: Stores) -> None:
    """DVC reads it from the folder of its configuration; a checkpoint comes from a folder elsewhere."""
    configure(stores.clone, "../../storage")
    snapshot = stores.folder / "deep" / "down" / "snapshot"
    shutil.copytree(stores.clone / RUN, snapshot)
    lock = lock_of(stores.clone)
    lock.take()
    with checkpoints(stores.clone, lock) as publisher:
        publisher.publish(replace(publication(stores.clone, CHECKPOINT), source=snapshot), {"epoch": 1})
    assert len(stores.objects()) == 2
    publish(stores.clone, hold=lock)
    assert stores.objects() == objects_of(stores.clone)
    assert check(stores.clone).is_healthy


def test_branches_are_judged_by_their_own_dvc_remote(stores: Stores) -> None:
    """`main` changes its remote after a run: the run's branch can be pulled still, and is not called broken."""
    publish(stores.clone)
    configure(stores.clone, stores.folder / "new")
    run_git("push", "--quiet", "origin", "HEAD:main", cwd=stores.clone)
    write_run(stores.clone, seed=1)
    publish(stores.clone, OTHER)
    checked = check(stores.clone_again())
    assert checked.is_healthy
    assert [(finding.kind, HEAD in finding.what) for finding in checked.findings] == [("elsewhere", True)]
    shutil.rmtree(stores.folder / "new" / "files")
    checked = check(stores.clone_again("again"))
    assert {finding.kind for finding in checked.findings} == {"elsewhere", "missing"}
    assert all(OTHER in finding.what for finding in checked.findings if finding.kind == "missing")


def test_copies_on_another_dvc_remote_stay_declared(stores: Stores, wire: Wire) -> None:
    """A dead run is published again after a change of remotes; a clone that uses the old one deletes its copies."""
    ref = leave_a_run(wire, stores.clone, BRANCH)
    old = stores.clone_again()
    configure(stores.clone, stores.folder / "new")
    write_run(stores.clone, seed=1)
    lines: list[str] = []
    publish(stores.clone, say=lines.append)
    assert any("another DVC remote" in line for line in lines)
    assert sorted(stores.refs()) == [HEAD, ref]
    assert len(stores.objects()) == 2
    assert recover(stores.clone, patience=0, say=str) == 1
    (stores.clone / ".dvc/config.local").write_bytes((old / ".dvc/config").read_bytes())
    assert recover(stores.clone, patience=0, say=str) == 0
    assert (list(stores.refs()), stores.objects()) == ([HEAD], {})


def test_a_dvc_remote_that_is_not_writable_is_found_before_the_first_upload(stores: Stores) -> None:
    """Nothing is left."""
    (stores.clone / ".dvc/config.local").write_text("['remote \"storage\"']\n    url = /proc\n")
    with pytest.raises(DvcPushError) as caught:
        publish(stores.clone)
    assert "/proc" in caught.value.what
    assert "the folder is writable" in caught.value.remedy
    assert "everything is rolled back" in caught.value.state
    assert stores.refs() == {}


def test_a_private_repository_may_declare_thousands_of_copies(stores: Stores) -> None:
    """The run's record is larger than what is fetched at first; it is read later, with the token."""
    token = "ghp_ofThePrivateRepository"
    with GitHost(stores.folder / "hosted") as host:
        host.add_repository("owner/name", stores.origin)
        host.add_token(token)
        run_git("remote", "set-url", "origin", host.address("owner/name"), cwd=stores.clone)
        credentials = Credentials(token)
        lock = RunLock(Refs(stores.clone, credentials), "large", lease=0.5, say=str)
        lock.take()
        assert lock.record is not None
        copies = tuple(DeclaredCopy(oid=f"{n:032x}", size=1, identity=str(n), store="folder x") for n in range(1700))
        lock.push(lock.record.but(publishing=copies))
        lock.release()
        other = stores.clone_again()
        run_git("remote", "set-url", "origin", host.address("owner/name"), cwd=other)
        (run,) = Refs(other, credentials).read_runs().values()
        assert run.record is not None
        assert run.record.declared == copies
        assert recover(stores.clone, credentials, patience=0, say=str) == 1  # they are on another DVC remote
        assert publish(stores.clone, credentials=credentials).uploaded == 10_000


def test_a_checkpoint_of_another_dvc_remote_is_left_by_a_rebuilt_one(stores: Stores) -> None:
    """The storage was lost: the next checkpoint of the run is whole, and `check` names the finished run's branch."""
    publish(stores.clone, OTHER)
    save(stores.clone, 1)
    shutil.rmtree(stores.storage)
    stores.storage.mkdir()
    save(stores.clone, 2)
    checked = check(stores.clone_again())
    assert {finding.kind for finding in checked.findings} == {"missing"}
    assert all(OTHER in finding.what for finding in checked.findings)
    assert f"refs/heads/{CHECKPOINT}" in stores.refs()
