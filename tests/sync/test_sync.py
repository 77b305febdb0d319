"""Claims on one publication, against a real Git remote and a real DVC remote.

Faults are injected at the boundaries of this project, which are in `wire.py`.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from conftest import RUN, SMALL_FILES, WEIGHTS, Stores, run_git, write_run
from publications import (
    BRANCH,
    OTHER,
    identities,
    lock_of,
    md5_of,
    nothing_changes,
    objects_of,
    publication,
    publish,
    refuse,
)
from wire import Wire, assert_branches_are_complete, at_each_copy, created_branch, when

from lib.errors import DvcPushError, GitPushError, InDoubt, SyncError
from lib.process import run_command
from lib.sync import Publication, Published, check, recover, sync_outputs

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of DVC's own

HEAD = f"refs/heads/{BRANCH}"
RUNS = "refs/heads/kaggle-train-*"


@pytest.fixture(autouse=True)
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    """Return the boundary to the Git remote; repeated commands do not wait."""
    return Wire(monkeypatch)


def assert_published(stores: Stores, clone: Path, branch: str = BRANCH) -> None:
    """Check that the branch has every object of the run, and that no run's ref is left."""
    assert f"refs/heads/{branch}" in stores.refs()
    assert_branches_are_complete(stores)
    assert objects_of(clone).items() <= stores.objects().items()
    assert stores.runs() == []


def first_object(stores: Stores) -> Path:
    """Return the path of the first model's object on the DVC remote."""
    return stores.object_path(md5_of((stores.clone / WEIGHTS[0]).read_bytes()))


# ── publishing ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_second_clone_pulls_the_same_bytes(stores: Stores) -> None:
    """Users check the branch out and run `dvc pull`: DVC itself gets the models."""
    from dvc.repo import Repo

    published = publish(stores.clone)
    assert published == Published(BRANCH, stores.refs()[HEAD], 10_000)
    assert_published(stores, stores.clone)
    second = stores.clone_again(branch=BRANCH)
    with Repo(str(second)) as repo:
        repo.pull()
    for name in (*WEIGHTS, *SMALL_FILES):
        assert (second / name).read_bytes() == (stores.clone / name).read_bytes()


def test_a_publication_contains_the_whole_folder_and_nothing_else(stores: Stores) -> None:
    """Ignored images are included; the models themselves are not in Git, and files outside the folder are not added."""
    odd = ["a b.txt", "-dash.txt", "star*.txt", "é.txt", ".hidden", "deep/er/x.png", ":(top)x.txt"]
    for name in odd:
        path = stores.clone / RUN / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name, encoding="utf-8")
    (stores.clone / "outside.txt").write_text("mine", encoding="utf-8")
    publish(stores.clone)
    parent = run_git("rev-parse", f"{BRANCH}^", cwd=stores.origin)
    assert parent == run_git("rev-parse", "HEAD", cwd=stores.clone)
    changed = run_git("diff", "--name-status", "--no-renames", "-z", parent, BRANCH, cwd=stores.origin).split("\0")
    expected = [f"{RUN}/{name}" for name in odd] + list(SMALL_FILES) + [f"{name}.dvc" for name in WEIGHTS]
    assert set(changed[1::2]) == {*expected, f"{RUN}/train/weights/.gitignore", f"{RUN}/.gitattributes"}
    assert set(changed[:-1:2]) == {"A"}


def test_files_that_are_left_out_are_not_published(stores: Stores) -> None:
    """They are found by name, anywhere in the folder."""
    run = publication(stores.clone)
    sync_outputs(Publication(**{**vars(run), "leave_out": frozenset({"results.png"})}), say=str)
    names = run_git("ls-tree", "-r", "--name-only", BRANCH, cwd=stores.origin).splitlines()
    assert f"{RUN}/train/results.png" not in names
    assert f"{RUN}/train/args.yaml" in names


def test_publishing_changes_neither_index_nor_head_nor_branch_nor_status(stores: Stores) -> None:
    """The user may have staged and unstaged changes."""
    clone = stores.clone
    run_git("switch", "--quiet", "--create", "work", cwd=clone)
    (clone / "staged.py").write_text("staged\n", encoding="utf-8")
    (clone / "code.py").write_text("staged version\n", encoding="utf-8")
    run_git("add", "staged.py", "code.py", cwd=clone)
    (clone / "code.py").write_text("unstaged version\n", encoding="utf-8")

    commands = (
        "status --porcelain",
        "ls-files --stage",
        "diff",
        "for-each-ref refs/heads refs/tags refs/stash",
        "rev-parse HEAD",
        "symbolic-ref HEAD",
        "config --local --list",
    )

    def mine() -> list[str]:
        return [run_git(*command.split(), cwd=clone) for command in commands]

    before = mine()
    publish(clone)
    assert mine() == before
    names = run_git("ls-tree", "-r", "--name-only", BRANCH, cwd=stores.origin).splitlines()
    assert "staged.py" not in names
    assert run_git("show", f"{BRANCH}:code.py", cwd=stores.origin) == "print('train')"


def test_a_detached_head_publishes(stores: Stores) -> None:
    """A notebook checks out a commit, not a branch."""
    run_git("checkout", "--quiet", "--detach", cwd=stores.clone)
    publish(stores.clone)
    assert_published(stores, stores.clone)


def test_a_shallow_clone_publishes(stores: Stores) -> None:
    """A notebook clones the last commit only."""
    (stores.clone / "more.py").write_text("more\n", encoding="utf-8")
    run_git("add", "more.py", cwd=stores.clone)
    run_git("commit", "--quiet", "--message=more", cwd=stores.clone)
    run_git("push", "--quiet", "origin", "HEAD:main", cwd=stores.clone)
    shallow = stores.folder / "shallow"
    run_git("clone", "--quiet", "--depth=1", "--branch=main", f"file://{stores.origin}", shallow, cwd=stores.folder)
    write_run(shallow)
    publish(shallow)
    assert_published(stores, shallow)


def test_a_second_call_reports_the_publication_and_changes_nothing(stores: Stores) -> None:
    """A cell is run twice, or a session is resumed in another one."""
    first = publish(stores.clone)
    lines: list[str] = []
    with nothing_changes(stores):
        again = publish(stores.clone, say=lines.append)
    assert again == Published(BRANCH, first.commit, 0, before=True)
    assert any("published already" in line for line in lines)


def test_two_branches_of_the_same_content_share_its_objects(stores: Stores) -> None:
    """The second uploads nothing and does not rewrite the objects."""
    publish(stores.clone)
    before = identities(stores)
    second = stores.clone_again()
    write_run(second)
    assert publish(second, OTHER).uploaded == 0
    assert identities(stores) == before
    assert {HEAD, f"refs/heads/{OTHER}"} == set(stores.refs())
    assert_published(stores, second, OTHER)


def test_uploads_show_bytes_time_and_rate(stores: Stores, capsys: pytest.CaptureFixture[str]) -> None:
    """One bar shows all uploads, to the last byte; there is none if nothing is uploaded."""
    publish(stores.clone)
    assert re.search(r"\r  uploading: 0\.0 MiB in .* s \(.* MiB/s\) *\n", capsys.readouterr().out)
    publish(stores.clone, OTHER)
    assert "uploading" not in capsys.readouterr().out


def test_the_four_phases_are_reported(stores: Stores) -> None:
    """They are in order, with the names of the users' manual."""
    lines: list[str] = []
    publish(stores.clone, say=lines.append)
    phases = [line.split(" (")[0] for line in lines if line.startswith("Phase")]
    assert phases == ["Phase 1: DVC add", "Phase 2: DVC push", "Phase 3: Git staging", "Phase 4: Git push"]


# ── failing and rolling back ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_refused_branch_leaves_nothing(stores: Stores) -> None:
    """No ref, object, `.dvc` file or ignore line is left; the models are in place; the cause is reported."""
    refuse(stores, RUNS)
    with nothing_changes(stores), pytest.raises(GitPushError) as caught:
        publish(stores.clone)
    assert stores.objects() == {}
    message = str(caught.value)
    for part in (
        "Git push failed",
        "no new branches today",
        "State: everything is rolled back",
        WEIGHTS[0],
        "What to do: ",
    ):
        assert part in message


def test_a_retry_after_a_refusal_publishes_once(stores: Stores) -> None:
    """The first failure leaves nothing that stops the second call."""
    refuse(stores, RUNS)
    with pytest.raises(GitPushError):
        publish(stores.clone)
    stores.remove_hook("pre-receive")
    assert publish(stores.clone).uploaded == 10_000
    assert_published(stores, stores.clone)
    assert list(stores.refs()) == [HEAD]


def test_earlier_ignore_lines_and_dvc_files_are_kept(stores: Stores) -> None:
    """The user's own lines and files are not changed by a publication that fails."""
    folder = (stores.clone / WEIGHTS[0]).parent
    (folder / ".gitignore").write_text("# mine, without a line's end\n/cache", encoding="utf-8")
    (folder / "best.pt.dvc").write_text(
        f"outs:\n- md5: {'ab' * 16}\n  size: 1\n  hash: md5\n  path: best.pt\n", encoding="utf-8"
    )
    refuse(stores, RUNS)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(GitPushError):
        publish(stores.clone)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_git_remote_that_refuses_the_runs_ref_is_reported_and_nothing_is_left(stores: Stores) -> None:
    """The token is read-only: no object is uploaded, and the remedy does not point at Google Drive."""
    stores.write_hook("pre-receive", "echo 'read-only token' >&2; exit 1")
    with nothing_changes(stores), pytest.raises(GitPushError) as caught:
        publish(stores.clone)
    assert "read-only token" in str(caught.value)
    assert "DVC push failed" not in str(caught.value)


def test_a_git_remote_that_cannot_be_read_is_not_reported_as_a_failure_of_the_dvc_remote(
    stores: Stores, wire: Wire
) -> None:
    """The remedy of a step that reads Git does not point at Drive."""
    wire.fault = when(lambda words: words[1] == "ls-remote", "refused")
    with nothing_changes(stores), pytest.raises(SyncError) as caught:
        publish(stores.clone)
    assert not isinstance(caught.value, DvcPushError)
    assert "Drive" not in str(caught.value)


def test_a_commit_push_without_an_answer_is_a_git_push_error(stores: Stores, wire: Wire) -> None:
    """A timeout is reported as a failed push, as a refusal is."""
    wire.fault = when(created_branch, "late")
    with nothing_changes(stores), pytest.raises(GitPushError) as caught:
        publish(stores.clone)
    assert "Git push failed" in str(caught.value)


def test_a_dvc_remote_that_cannot_be_read_leaves_nothing(stores: Stores) -> None:
    """Here its folder `files` is a file."""
    (stores.storage / "files").write_text("in the way", encoding="utf-8")
    with nothing_changes(stores), pytest.raises(DvcPushError) as caught:
        publish(stores.clone)
    for part in ("DVC push failed", "State: everything is rolled back", WEIGHTS[0], "What to do: "):
        assert part in str(caught.value)


def test_a_dvc_remote_that_fills_up_during_a_copy_leaves_nothing(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The complete first file and the half second one are both deleted."""

    def fill_up(number: int, path: Path) -> None:
        if number == 2:
            assert len(stores.objects()) == 2
            os.truncate(path, 2500)
            raise OSError(errno.ENOSPC, "No space left on device")

    at_each_copy(monkeypatch, fill_up)
    with nothing_changes(stores), pytest.raises(DvcPushError) as caught:
        publish(stores.clone)
    assert stores.objects() == {}
    for part in ("DVC push failed", "No space left on device", "State: everything is rolled back"):
        assert part in str(caught.value)


def test_an_interrupt_during_an_upload_leaves_nothing(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C is rolled back like any failure, and KeyboardInterrupt is raised."""

    def interrupt(number: int, _path: Path) -> None:
        if number == 2:
            raise KeyboardInterrupt

    at_each_copy(monkeypatch, interrupt)
    with nothing_changes(stores), pytest.raises(KeyboardInterrupt):
        publish(stores.clone)


def test_an_incomplete_upload_is_not_published(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that reports success and keeps half of the file is found before the commit push."""

    def cut(_number: int, path: Path) -> None:
        time = path.stat().st_mtime_ns
        os.truncate(path, 4)
        os.utime(path, ns=(time, time))

    at_each_copy(monkeypatch, cut)
    with nothing_changes(stores), pytest.raises(DvcPushError, match="4 bytes instead of 5000"):
        publish(stores.clone)


def test_a_copy_that_vanishes_before_the_commit_stops_the_publication(stores: Stores) -> None:
    """It was there before, and is not ours: each copy is asked for once more."""
    path = first_object(stores)
    path.parent.mkdir(parents=True)
    shutil.copyfile(stores.clone / WEIGHTS[0], path)

    def vanish(line: str) -> None:
        if line.startswith("Phase 3"):
            path.unlink()

    with pytest.raises(DvcPushError, match="is not there"):
        publish(stores.clone, say=vanish)
    assert (stores.refs(), stores.objects()) == ({}, {})
    publish(stores.clone)
    assert_published(stores, stores.clone)


def write_again(file: Path) -> None:
    """Write other bytes of the same number into a file, within the resolution of its time."""
    before = file.stat()
    file.write_bytes(file.read_bytes()[::-1])
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_model_that_is_written_before_its_upload_is_not_published(stores: Stores, wire: Wire) -> None:
    """Size and time are those of the file that was hashed: the bytes that were copied are compared."""

    def write_at_the_first_push(words: list[str]) -> str:
        if words[1] == "push" and [each[1] for each in wire.commands].count("push") == 1:
            write_again(stores.clone / WEIGHTS[0])
        return ""

    wire.fault = write_at_the_first_push
    with pytest.raises(DvcPushError, match="has other content"):
        publish(stores.clone)
    assert (stores.refs(), stores.objects()) == ({}, {})


def test_a_model_that_is_written_during_its_upload_is_not_published(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that writes it may go on: its publication would be older than its file."""
    at_each_copy(monkeypatch, lambda *_: (stores.clone / WEIGHTS[0]).write_bytes(b"x" * 5000))
    with pytest.raises(SyncError, match="was written to while it was published"):
        publish(stores.clone)
    assert (stores.refs(), stores.objects()) == ({}, {})


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(b"")], ids=["missing", "empty"])
def test_a_missing_or_empty_model_is_reported_before_any_request(
    stores: Stores, wire: Wire, spoil: Callable[[Path], object]
) -> None:
    """No remote is contacted."""
    spoil(stores.clone / WEIGHTS[0])
    with pytest.raises(SyncError, match=r"best\.pt is missing or empty"):
        publish(stores.clone)
    assert wire.commands == []
    assert stores.objects() == {}


def test_an_object_that_was_stored_before_stays_after_a_failure(stores: Stores) -> None:
    """It stays although no branch names it; the objects that this run added are deleted."""
    path = first_object(stores)
    path.parent.mkdir(parents=True)
    shutil.copyfile(stores.clone / WEIGHTS[0], path)
    refuse(stores, RUNS)
    with nothing_changes(stores), pytest.raises(GitPushError):
        publish(stores.clone)
    assert list(stores.objects()) == [path.relative_to(stores.storage).as_posix()]


def test_a_damaged_object_that_was_stored_before_stops_the_publication_and_stays(stores: Stores) -> None:
    """A branch that names it could not be pulled; this run must not delete it."""
    path = first_object(stores)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"cut")
    with nothing_changes(stores), pytest.raises(DvcPushError, match="3 bytes instead of 5000"):
        publish(stores.clone)


NAMING = {
    "branch": "update-ref refs/heads/mine {commit}",
    "nested branch": "update-ref refs/heads/a/b/c {commit}",
    "annotated tag": "tag --force --annotate -mkept v1 {commit}",
    "experiment of DVC": "update-ref refs/exps/ab/cd/name {commit}",
    "pull request": "update-ref refs/pull/7/head {commit}",
    "merge request": "update-ref refs/merge-requests/7/head {commit}",
}


@pytest.mark.parametrize("named_by", [*NAMING, "history", "merge"])
def test_an_object_that_anything_on_the_git_remote_names_stays_after_a_failure(
    stores: Stores, wire: Wire, named_by: str
) -> None:
    """A person publishes the same content with Git and DVC during this run, which has uploaded it and then fails."""

    def fault(words: list[str]) -> str:
        if not created_branch(words):
            return ""
        git = partial(run_git, cwd=stores.origin)
        commit = next(word for word in words if word.endswith(f":{HEAD}")).partition(":")[0]
        run_git("push", "--quiet", "origin", f"{commit}:refs/heads/there", cwd=stores.clone)
        if named_by == "history":  # a later commit without any file of the run
            git("update-ref", "refs/heads/after", git("commit-tree", "main^{tree}", "-p", commit, "-m", "x"))
        elif named_by == "merge":  # whose parents do not contain it
            side = git("commit-tree", "main^{tree}", "-p", "main", "-m", "side")
            merge = git("commit-tree", f"{commit}^{{tree}}", "-p", "main", "-p", side, "-m", "x")
            git("update-ref", "refs/heads/merged", merge)
        else:
            git(*NAMING[named_by].format(commit=commit).split())
        git("update-ref", "-d", "refs/heads/there")
        return "refused"

    wire.fault = fault
    with pytest.raises(GitPushError):
        publish(stores.clone)
    assert HEAD not in stores.refs()
    assert stores.runs() == []
    assert len(stores.objects()) == 2


def test_a_branch_of_that_name_with_other_content_is_not_changed(stores: Stores) -> None:
    """Two runs may have the same time stamp."""
    run_git("update-ref", HEAD, "main", cwd=stores.origin)
    with nothing_changes(stores), pytest.raises(GitPushError) as caught:
        publish(stores.clone)
    assert BRANCH in str(caught.value)
    assert "other content" in str(caught.value)
    assert stores.objects() == {}


def test_a_branch_of_that_name_that_appears_meanwhile_is_not_changed(stores: Stores, wire: Wire) -> None:
    """The commit push creates the branch or fails; it never moves one."""
    main = run_git("rev-parse", "main", cwd=stores.origin)
    wire.before_commit[BRANCH] = lambda: run_git("update-ref", HEAD, main, cwd=stores.origin)
    with pytest.raises(GitPushError) as caught:
        publish(stores.clone)
    assert "supports atomic pushes" not in str(caught.value)  # git's message mentions them, but they are not the cause
    assert stores.refs() == {HEAD: main}
    assert stores.objects() == {}


def test_a_clone_whose_origin_moved_reads_the_new_one(stores: Stores) -> None:
    """The mirror of the old remote is not used, and the new one is another repository's until it has an identity."""
    publish(stores.clone)
    assert check(stores.clone).refs == 2
    moved = stores.folder / "moved.git"
    run_git("clone", "--quiet", "--bare", "--branch=main", "--single-branch", stores.origin, moved, cwd=stores.folder)
    run_git("remote", "set-url", "origin", moved, cwd=stores.clone)
    assert check(stores.clone).refs == 1
    publish(stores.clone, OTHER)
    assert f"refs/heads/{OTHER}" not in stores.refs()
    assert HEAD not in Stores(stores.folder, moved, stores.storage, stores.clone).refs()


# ── lost answers ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_publication_whose_last_answer_is_lost_succeeds(stores: Stores, wire: Wire) -> None:
    """The Git remote is read and shows the branch."""
    wire.fault = when(created_branch, "lost")
    assert publish(stores.clone) == Published(BRANCH, stores.refs()[HEAD], 10_000)
    assert_published(stores, stores.clone)


def test_a_push_that_arrives_after_the_remote_was_read_counts_as_done(stores: Stores, wire: Wire) -> None:
    """The push was delayed: it arrives before it is repeated, and the repeated one is rejected."""
    held: list[list[str]] = []

    def fault(words: list[str]) -> str:
        if not created_branch(words):
            return ""
        held.append(words)
        if len(held) == 2:
            run_command(held[0], cwd=stores.clone)
        return "late" if len(held) == 1 else ""

    wire.fault = fault
    assert publish(stores.clone).commit == stores.refs()[HEAD]
    assert_published(stores, stores.clone)


def test_a_push_that_arrives_during_the_roll_back_counts_as_done(stores: Stores, wire: Wire) -> None:
    """The roll back begins with a push of the run's ref, which finds it gone: nothing is deleted."""
    held: list[list[str]] = []

    def fault(words: list[str]) -> str:
        if created_branch(words):
            held.append(words)
            return "late"
        if held and words[1] == "push":
            run_command(held[0], cwd=stores.clone)
        return ""

    wire.fault = fault
    assert publish(stores.clone).commit == stores.refs()[HEAD]
    assert_published(stores, stores.clone)


def test_an_interrupt_during_the_commit_push_leaves_a_finished_publication(stores: Stores, wire: Wire) -> None:
    """Ctrl-C arrives after the push has happened: there is nothing to roll back."""

    def interrupt(words: list[str]) -> str:
        if created_branch(words):
            run_command(words, cwd=stores.clone)
            raise KeyboardInterrupt
        return ""

    wire.fault = interrupt
    lines: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        publish(stores.clone, say=lines.append)
    assert_published(stores, stores.clone)
    assert lines[-1] == f"{BRANCH} is published."


@pytest.mark.parametrize("kind", ["lost", "late"])
@pytest.mark.parametrize("resolution", ["again", "recover", "recover here"])
def test_a_run_in_doubt_keeps_everything_until_the_doubt_is_resolved(
    stores: Stores, wire: Wire, kind: str, resolution: str
) -> None:
    """Nothing is deleted while the state is unknown; each way to resolve it ends in all or nothing."""
    wire.cut_at_the_commit(kind)
    lock = lock_of(stores.clone, BRANCH, lease=0.5)
    with pytest.raises(InDoubt) as caught:
        publish(stores.clone, hold=lock)
    lock.release()
    wire.heal()
    happened = kind == "lost"
    assert (HEAD in stores.refs(), len(stores.runs())) == (happened, 0 if happened else 1)
    assert len(stores.objects()) == 2
    for name in WEIGHTS:
        assert (stores.clone / name).exists()
    for part in (BRANCH, "State: everything is kept", "What to do: ", "recover"):
        assert part in str(caught.value)
    if resolution == "again":
        assert publish(stores.clone).before is happened
    else:
        here = resolution == "recover here"
        clone = stores.clone if here else stores.clone_again()
        assert recover(clone, patience=0 if here else None, say=str) == 0
    if resolution == "again" or happened:
        assert_published(stores, stores.clone)
    else:
        assert (stores.refs(), stores.objects()) == ({}, {})


def test_a_failed_retry_of_a_run_in_doubt_changes_nothing(stores: Stores, wire: Wire) -> None:
    """The retry rolls back what both calls have uploaded."""
    with nothing_changes(stores):
        wire.cut_at_the_commit("late")
        with pytest.raises(InDoubt):
            publish(stores.clone)
        wire.fault = when(created_branch, "refused")
        with pytest.raises(GitPushError):
            publish(stores.clone)
