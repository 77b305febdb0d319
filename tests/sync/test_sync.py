"""Claims on the transaction, against a real Git remote, a real DVC remote and real processes that die.

Faults are injected at the boundaries of this project: between it and git (`wire`), and between it and the file system.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, RUN, SMALL_FILES, WEIGHTS, Stores, is_alive, run_git, write_run
from publications import (
    BRANCH,
    OTHER,
    STAMP,
    accept_only,
    identities,
    md5_of,
    nothing_changes,
    objects_of,
    publication,
    publish,
    refuse,
)

from lib.errors import DvcPushError, GitPushError, InDoubt, RunError, SyncError
from lib.process import CommandTimedOut, Completed, run_command
from lib.remotes.credentials import Credentials
from lib.sync import Publication, Published, recover, sync_outputs
from lib.sync import intent as journal
from lib.sync import lease as lease_module
from lib.sync import publish as publish_module
from lib.sync import refs as refs_module
from lib.sync.refs import Refs, RefUpdate
from lib.sync.remotes import open_remotes

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of DVC's own

HEAD = f"refs/heads/{BRANCH}"
RUNS = "refs/heads/kaggle-train-*"


# ── steps ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


CHILD = """
import os, shutil, sys, time
from datetime import datetime
from pathlib import Path
from lib.sync import Publication, sync_outputs
clone, branch, folder, stamp, objects = sys.argv[1:6]
{before}
print(sync_outputs(Publication(Path(clone), branch, "Training of exp001\\n", folder, tuple(objects.split(":")),
                               datetime.fromisoformat(stamp))))
"""


@contextmanager
def publishing_process(clone: Path, branch: str = BRANCH, *, before: str = "") -> Iterator[subprocess.Popen[str]]:
    """Publish in a subprocess, which is killed at the end of the block."""
    script = CHILD.format(before=before)
    words = [sys.executable, "-c", script, str(clone), branch, RUN, STAMP.isoformat(), ":".join(WEIGHTS)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        words, cwd=clone, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(path: Path, process: subprocess.Popen[str]) -> str:
    """Return a file's text as soon as it is there; the process that writes it must be alive."""
    while not path.exists() or not path.read_text(encoding="utf-8"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return path.read_text(encoding="utf-8").strip()


def wait_for_end(pid: int) -> None:
    """Wait until a process that is not a child of this one has ended."""
    while is_alive(pid):
        time.sleep(0.02)


def pause_branches(stores: Stores) -> tuple[Path, Path]:
    """Make the Git remote pause every push of a branch: it writes its process id to `reached` and waits for `go`.

    It gives up after a minute, so that a failing test leaves no process.
    """
    reached, go = stores.folder / "reached", stores.folder / "go"
    stores.write_hook(
        "pre-receive",
        f"""while read old new ref; do
  case "$ref" in refs/heads/*)
    echo $PPID > {reached}.part; mv {reached}.part {reached}
    for turn in $(seq 1200); do [ -e {go} ] && break; sleep 0.05; done;;
  esac
done""",
    )
    return reached, go


Fault = Callable[[list[str]], str]


class Wire:
    """The boundary between this project and git: it can break a command, or do something just before one.

    A fault is what happens to a command that contacts the remote: `refused` (it does not happen and fails), `late` (it
    does not happen and gets no answer), `lost` (it happens and gets no answer), or empty for no fault.
    """

    def __init__(self) -> None:
        self.fault: Fault = lambda _words: ""
        self.before_commit: dict[str, Callable[[], object]] = {}
        self.commands: list[list[str]] = []

    def run_command(self, command: Sequence[str | Path], **options: Any) -> Completed:
        """Run a command with the current fault."""
        words = [str(word) for word in command]
        if words[1] not in ("push", "ls-remote", "fetch"):
            return run_command(command, **options)
        if created := created_branch(words):
            self.before_commit.pop(created, lambda: None)()
        self.commands.append(words)
        fault = self.fault(words)
        if fault == "refused":
            command = ["sh", "-c", "echo 'fatal: unable to access the remote' >&2; exit 128"]
        elif fault == "late":
            raise CommandTimedOut("git", 1)
        answer = run_command(command, **options)
        if fault == "lost":
            raise CommandTimedOut("git", 1)
        return answer


def created_branch(words: Sequence[str]) -> str:
    """Return the branch that a command creates on the remote: only the commit push creates one."""
    if words[1] != "push":
        return ""
    return next((word.partition(":refs/heads/")[2] for word in words if ":refs/heads/" in word and word[0] != "-"), "")


def when(fits: Callable[[list[str]], object], fault: str) -> Fault:
    """Return the fault for every command that fits, and none for others."""
    return lambda words: fault if fits(words) else ""


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    """Return the boundary to the Git remote."""
    wire = Wire()
    monkeypatch.setattr(refs_module, "run_command", wire.run_command)
    return wire


class Clock:
    """A clock that can jump ahead, as for a machine that slept."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self._real = time.monotonic

    def monotonic(self) -> float:
        """Return the time."""
        return self._real() + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the clock by which leases expire."""
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock.monotonic)
    return clock


# ── checks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def assert_branches_are_complete(stores: Stores) -> None:
    """Check that every object that a visible branch names is on the DVC remote, with its content."""
    for ref in stores.refs():
        if not ref.startswith("refs/heads/"):
            continue
        for name in run_git("ls-tree", "-r", "--name-only", ref, cwd=stores.origin).splitlines():
            if not name.endswith(".dvc"):
                continue
            text = run_git("show", f"{ref}:{name}", cwd=stores.origin)
            wanted = next(line.split("md5: ")[1] for line in text.splitlines() if "md5: " in line)
            path = stores.object_path(wanted)
            assert path.is_file(), f"{ref} names {name}, whose object is not there"
            assert md5_of(path.read_bytes()) == wanted


def assert_published(stores: Stores, clone: Path, branch: str = BRANCH) -> None:
    """Check that the branch has every object of the run, and that no intent is left."""
    assert f"refs/heads/{branch}" in stores.refs()
    assert_branches_are_complete(stores)
    assert objects_of(clone).items() <= stores.objects().items()
    assert stores.intents() == []


def first_object(stores: Stores) -> Path:
    """Return the path of the first model's object on the DVC remote."""
    return stores.object_path(md5_of((stores.clone / WEIGHTS[0]).read_bytes()))


def record_of(stores: Stores, ref: str) -> dict[str, Any]:
    """Return the record of an intent."""
    record: dict[str, Any] = json.loads(run_git("show", f"{ref}:intent.json", cwd=stores.origin))
    return record


def plant_intent(stores: Stores, text: str, name: str = "planted") -> str:
    """Store an intent with this text on the Git remote."""
    path = stores.folder / "intent.json"
    path.write_text(text, encoding="utf-8")
    blob = run_git("hash-object", "-w", path, cwd=stores.origin)
    index = {**os.environ, "GIT_INDEX_FILE": str(stores.folder / "index")}
    add = ["git", "update-index", "--add", "--cacheinfo", f"100644,{blob},intent.json"]
    subprocess.run(add, cwd=stores.origin, env=index, check=True)
    write = subprocess.run(
        ["git", "write-tree"], cwd=stores.origin, env=index, check=True, capture_output=True, text=True
    )
    commit = run_git("commit-tree", write.stdout.strip(), "-m", "intent", cwd=stores.origin)
    run_git("update-ref", f"refs/intents/{name}", commit, cwd=stores.origin)
    return f"refs/intents/{name}"


def git_side_commit(stores: Stores) -> str:
    """Return a commit on top of the main branch, with the same files."""
    return run_git("commit-tree", "main^{tree}", "-p", "main", "-m", "side", cwd=stores.origin)


def leave_an_intent(stores: Stores, wire: Wire, clone: Path, branch: str = BRANCH) -> str:
    """Publish, and lose the network at the commit push: objects and an intent stay. Return the intent's ref."""
    cut: list[bool] = []

    def fault(words: list[str]) -> str:
        if created_branch(words):
            cut.append(True)
        return "refused" if cut else ""

    wire.fault = fault
    with pytest.raises(RunError):
        publish(clone, branch)
    wire.fault = lambda _words: ""
    (ref,) = stores.intents()
    return ref


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


def test_the_advice_of_dvc_is_not_shown(stores: Stores) -> None:
    """The publication itself does `git add …`; in a notebook the advice would mislead."""
    with publishing_process(stores.clone) as process:  # where DVC's logger writes to the real streams
        shown = "".join(process.communicate())
    assert "Phase 4" in shown
    for advice in ("git add", "To track", "autostage"):
        assert advice not in shown


def test_files_are_uploaded_concurrently(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each upload waits here until the other one has begun."""
    begun = threading.Barrier(len(WEIGHTS), timeout=30)
    copy = shutil.copyfile

    def copy_together(source: Path, target: Path) -> None:
        begun.wait()
        copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", copy_together)
    publish(stores.clone)
    assert_published(stores, stores.clone)


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
    """No branch, intent, object, `.dvc` file or ignore line is left; the models are in place; the cause is reported."""
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


def test_a_git_remote_that_refuses_the_intent_is_reported_and_nothing_is_left(stores: Stores) -> None:
    """The token is read-only: no object is uploaded, and the remedy does not point at Google Drive."""
    stores.write_hook("pre-receive", "echo 'read-only token' >&2; exit 1")
    with nothing_changes(stores), pytest.raises(GitPushError) as caught:
        publish(stores.clone)
    assert "read-only token" in str(caught.value)
    assert "DVC push failed" not in str(caught.value)


def test_the_intent_is_a_temporary_branch_if_the_host_accepts_only_branches(stores: Stores) -> None:
    """This is chosen and reported automatically; no such branch is left after the publication."""
    accept_only(stores, "refs/heads/*|refs/tags/*")
    lines: list[str] = []
    publish(stores.clone, say=lines.append)
    assert_published(stores, stores.clone)
    assert any("refuses refs/intents/" in line for line in lines)


def test_a_failure_is_rolled_back_if_the_intent_is_a_branch(stores: Stores) -> None:
    """The ref has another name, the protocol is the same."""
    accept_only(stores, "refs/heads/kaggle-intents/*")
    with nothing_changes(stores), pytest.raises(GitPushError, match="Git push failed"):
        publish(stores.clone)


def test_a_git_remote_that_cannot_be_read_is_not_reported_as_a_failure_of_the_dvc_remote(
    stores: Stores, wire: Wire
) -> None:
    """The remedy of a step that reads Git does not point at Drive."""
    wire.fault = lambda words: (
        "refused" if words[1] == "ls-remote" and "refs/heads/kaggle-checkpoint-*" in words else ""
    )
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
    copied: list[str] = []

    def copy_half(source: Path, target: Path) -> None:
        copied.append(str(target))
        content = Path(source).read_bytes()
        Path(target).write_bytes(content if len(copied) == 1 else content[:2500])
        if len(copied) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(publish_module, "CONCURRENT_UPLOADS", 1)
    monkeypatch.setattr(shutil, "copyfile", copy_half)
    with nothing_changes(stores), pytest.raises(DvcPushError) as caught:
        publish(stores.clone)
    assert len(copied) == 2
    assert stores.objects() == {}
    for part in ("DVC push failed", "No space left on device", "State: everything is rolled back"):
        assert part in str(caught.value)


def test_an_interrupt_during_an_upload_leaves_nothing(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C is rolled back like any failure, and KeyboardInterrupt is raised."""

    def interrupted(_source: Path, _target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfile", interrupted)
    with nothing_changes(stores), pytest.raises(KeyboardInterrupt):
        publish(stores.clone)


def test_an_incomplete_upload_is_not_published(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that reports success and keeps half of the file is found before the commit push."""
    monkeypatch.setattr(shutil, "copyfile", lambda _source, target: Path(target).write_bytes(b"half"))
    with nothing_changes(stores), pytest.raises(DvcPushError, match="4 bytes instead of 5000"):
        publish(stores.clone)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_model_that_is_written_while_it_is_published_is_not_published(
    stores: Stores, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Written after it was hashed, with the same size, before or after its upload: content and name would differ."""
    copy = shutil.copyfile

    def copy_and_write(source: Path, target: Path) -> None:
        if moment == "after":
            copy(source, target)
        Path(source).write_bytes(Path(source).read_bytes()[::-1])
        if moment == "before":
            copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", copy_and_write)
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


@pytest.mark.parametrize("named_by", ["branch", "nested branch", "annotated tag", "history", "merge"])
def test_an_object_that_anything_on_the_git_remote_names_stays_after_a_failure(
    stores: Stores, wire: Wire, named_by: str
) -> None:
    """Another run published the same content during this run, which had uploaded it and then failed."""
    second = stores.clone_again()
    write_run(second)

    def publish_the_same() -> None:
        assert publish(second, OTHER).uploaded == 0
        commit = stores.refs()[f"refs/heads/{OTHER}"]
        git = partial(run_git, cwd=stores.origin)
        if named_by == "nested branch":
            git("update-ref", "refs/heads/a/b/c", commit)
        elif named_by == "annotated tag":
            git("tag", "--annotate", "-mkept", "v1", commit)
        elif named_by == "history":  # a later commit without any file of the run
            git("update-ref", "refs/heads/after", git("commit-tree", "main^{tree}", "-p", commit, "-m", "x"))
        elif named_by == "merge":  # whose parents do not contain it
            merge = git("commit-tree", f"{commit}^{{tree}}", "-p", "main", "-p", git_side_commit(stores), "-m", "x")
            git("update-ref", "refs/heads/merged", merge)
        if named_by != "branch":
            run_git("update-ref", "-d", f"refs/heads/{OTHER}", cwd=stores.origin)

    wire.before_commit[BRANCH] = publish_the_same
    wire.fault = lambda words: "refused" if created_branch(words) == BRANCH else ""
    with pytest.raises(GitPushError):
        publish(stores.clone)
    assert HEAD not in stores.refs()
    assert stores.intents() == []
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
    """The mirror of the old remote is not used: an unfinished intent is found on the new one."""
    refuse(stores, RUNS)
    with pytest.raises(GitPushError):
        publish(stores.clone)
    moved = stores.folder / "moved.git"
    shutil.copytree(stores.origin, moved)
    (moved / "hooks" / "pre-receive").unlink()
    run_git("remote", "set-url", "origin", moved, cwd=stores.clone)
    new = Stores(stores.folder, moved, stores.storage, stores.clone)
    plant_intent(new, json.dumps({"protocol": 99}))
    assert recover(stores.clone, older_than=0, say=str) == 1
    publish(stores.clone)
    assert HEAD in new.refs()
    assert stores.refs() == {}


# ── every fault at every step ─────────────────────────────────────────────────────────────────────────────────────────


def assert_recovers(
    stores: Stores, other: Path, branch: str, objects: dict[str, bytes], error: RunError | None
) -> None:
    """Check after a fault that branches are complete, the error is true, and recovery ends in all or nothing."""
    assert_branches_are_complete(stores)
    published = f"refs/heads/{branch}" in stores.refs()
    if error is None:
        assert published
    elif "everything is rolled back" in str(error):
        assert not published
        assert (stores.intents(), stores.objects()) == ([], objects)
    if error is not None:
        assert recover(other, older_than=0, say=str) == 0
    assert stores.intents() == []
    assert_branches_are_complete(stores)
    if f"refs/heads/{branch}" in stores.refs():
        assert_published(stores, stores.clone, branch)
    else:
        assert stores.objects() == objects


@pytest.mark.slow
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from-then-on"])
@pytest.mark.parametrize("kind", ["refused", "lost"])
def test_a_fault_at_any_command_to_the_git_remote_ends_in_all_or_nothing(
    stores: Stores, wire: Wire, kind: str, lasting: bool
) -> None:
    """The first command fails, then the second, …, until the publication completes before its fault."""
    other = stores.clone_again()
    for step in range(1, 30):
        write_run(stores.clone, seed=step)
        branch, objects = f"kaggle-train-{step}", stores.objects()
        wire.commands = []
        wire.fault = lambda _words, at=step: (
            kind if len(wire.commands) == at or (lasting and len(wire.commands) > at) else ""
        )  # type: ignore[misc]
        error = None
        try:
            publish(stores.clone, branch)
        except RunError as caught:
            error = caught
        reached = len(wire.commands) >= step
        wire.fault = lambda _words: ""
        assert_recovers(stores, other, branch, objects, error)
        if not reached:
            assert step > 5
            return
    pytest.fail("a publication sends more than 29 commands to the Git remote")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["refused", "lost"])
def test_a_fault_at_any_command_of_a_rollback_ends_in_all_or_nothing(stores: Stores, wire: Wire, kind: str) -> None:
    """The branch is refused, and then one command of the rollback fails too."""
    other = stores.clone_again()
    for step in range(1, 30):
        write_run(stores.clone, seed=step)
        branch, objects = f"kaggle-train-{step}", stores.objects()
        after: list[list[str]] = []

        def fault(words: list[str], after: list[list[str]] = after, at: int = step) -> str:
            if after or created_branch(words):
                after.append(words)
            return "refused" if len(after) == 1 else kind if len(after) == at + 1 else ""

        wire.fault = fault
        with pytest.raises(RunError) as caught:
            publish(stores.clone, branch)
        wire.fault = lambda _words: ""
        assert_recovers(stores, other, branch, objects, caught.value)
        if len(after) <= step:
            assert step > 4
            return
    pytest.fail("a rollback sends more than 29 commands to the Git remote")


# ── lost answers ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_publication_whose_last_answer_is_lost_succeeds(stores: Stores, wire: Wire) -> None:
    """The Git remote is read and shows the branch."""
    wire.fault = when(created_branch, "lost")
    assert publish(stores.clone) == Published(BRANCH, stores.refs()[HEAD], 10_000)
    assert_published(stores, stores.clone)


def test_a_push_that_arrives_after_the_remote_was_read_counts_as_done(stores: Stores, wire: Wire) -> None:
    """The push was delayed: first there is no branch, then there is one, and no intent to roll back."""
    held: list[list[str]] = []

    def fault(words: list[str]) -> str:
        if created_branch(words):
            held.append(words)
            return "late"
        if held and words[1] == "fetch":  # the branch was not there when it was read; now the push arrives
            run_command(held.pop(), cwd=stores.clone)
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


def lose_the_network_at_the_last_push(wire: Wire, kind: str) -> None:
    """Make the commit push happen (`lost`) or not (`late`), and answer no request from then on."""
    cut: list[bool] = []

    def fault(words: list[str]) -> str:
        if created_branch(words):
            cut.append(True)
            return kind
        return "refused" if cut else ""

    wire.fault = fault


@pytest.mark.parametrize("kind", ["lost", "late"])
@pytest.mark.parametrize("resolution", ["again", "recover", "recover here"])
def test_a_run_in_doubt_keeps_everything_until_the_doubt_is_resolved(
    stores: Stores, wire: Wire, kind: str, resolution: str
) -> None:
    """Nothing is deleted while the state is unknown; each way to resolve it ends in all or nothing."""
    lose_the_network_at_the_last_push(wire, kind)
    with pytest.raises(InDoubt) as caught:
        publish(stores.clone)
    wire.fault = lambda _words: ""
    happened = kind == "lost"
    assert (HEAD in stores.refs(), len(stores.intents())) == (happened, 0 if happened else 1)
    assert len(stores.objects()) == 2
    for name in WEIGHTS:
        assert (stores.clone / name).exists()
    for part in (BRANCH, "State: everything is kept", "What to do: ", "recover"):
        assert part in str(caught.value)
    if resolution == "again":
        assert publish(stores.clone).before is happened
    else:
        clone = stores.clone if resolution == "recover here" else stores.clone_again()
        assert recover(clone, older_than=0, say=str) == 0
    if resolution == "again" or happened:
        assert_published(stores, stores.clone)
    else:
        assert (stores.refs(), stores.objects()) == ({}, {})


def test_a_failed_retry_of_a_run_in_doubt_changes_nothing(stores: Stores, wire: Wire) -> None:
    """The retry rolls back what both calls have uploaded."""
    with nothing_changes(stores):
        lose_the_network_at_the_last_push(wire, "late")
        with pytest.raises(InDoubt):
            publish(stores.clone)
        wire.fault = when(created_branch, "refused")
        with pytest.raises(GitPushError):
            publish(stores.clone)


def test_a_renewal_whose_answer_is_lost_does_not_fence_its_owner(
    stores: Stores, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The intent is at our own new commit: it is still ours, although the answer was lost."""
    monkeypatch.setattr(journal, "RENEWAL", 0.02)
    renewed = threading.Event()
    pushes: list[list[str]] = []
    copy = shutil.copyfile

    def copy_after_renewals(source: Path, target: Path) -> None:
        assert renewed.wait(30)
        copy(source, target)

    def fault(words: list[str]) -> str:
        if words[1] != "push" or created_branch(words):
            return ""
        pushes.append(words)  # the first declares, the second renews; there is no third one that could hide the loss
        if len(pushes) == 2:
            monkeypatch.setattr(journal, "RENEWAL", 100.0)
            renewed.set()
            return "lost"
        return ""

    monkeypatch.setattr(shutil, "copyfile", copy_after_renewals)
    wire.fault = fault
    publish(stores.clone)
    assert_published(stores, stores.clone)


# ── dead and live owners ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_killed_during_its_commit_push_is_recovered_from_another_clone(stores: Stores) -> None:
    """SIGKILL arrives during the push; the push itself continues alone, and is rejected."""
    reached, go = pause_branches(stores)
    with publishing_process(stores.clone) as process:
        pushing = int(wait_for(reached, process))
        process.kill()
        process.wait()
    (ref,) = stores.intents()
    assert record_of(stores, ref)["state"] == "uploading"
    assert len(stores.objects()) == 2
    lines: list[str] = []
    assert recover(stores.clone_again(), older_than=0, say=lines.append) == 0
    assert any(BRANCH in line for line in lines)
    assert (stores.refs(), stores.objects()) == ({}, {})
    go.touch()
    wait_for_end(pushing)
    assert (stores.refs(), stores.objects()) == ({}, {})
    assert (stores.clone / WEIGHTS[0]).exists()


def test_a_run_killed_in_its_own_clone_is_recovered_by_the_next_call(stores: Stores) -> None:
    """A dead process of this clone is recovered without waiting; then the publication succeeds."""
    reached, go = pause_branches(stores)
    with publishing_process(stores.clone) as process:
        pushing = int(wait_for(reached, process))
        process.kill()
        process.wait()
    stores.remove_hook("pre-receive")
    publish(stores.clone)
    assert_published(stores, stores.clone)
    go.touch()
    wait_for_end(pushing)
    assert_published(stores, stores.clone)


def test_a_run_killed_during_a_copy_leaves_no_half_object_after_recovery(stores: Stores) -> None:
    """The half-written copy has another name than the object, and is deleted too."""
    reached = stores.folder / "reached"
    before = f"""
def copy_half(source, target):
    Path(target).write_bytes(Path(source).read_bytes()[:2500])
    Path({str(reached)!r}).write_text("reached")
    time.sleep(600)
shutil.copyfile = copy_half
"""
    with publishing_process(stores.clone, before=before) as process:
        wait_for(reached, process)
        process.kill()
        process.wait()
    assert len(stores.intents()) == 1
    assert recover(stores.clone_again(), older_than=0, say=str) == 0
    assert (stores.refs(), stores.objects()) == ({}, {})


def test_a_live_run_is_left_alone_and_publishes(stores: Stores) -> None:
    """Its lease is valid: another clone's recovery and publication do not change it."""
    other = stores.clone_again()
    write_run(other, seed=1)
    reached, go = pause_branches(stores)
    with publishing_process(stores.clone) as process:
        wait_for(reached, process)
        intents = stores.intents()
        assert len(intents) == 1
        assert recover(other, say=str) == 1
        stores.remove_hook("pre-receive")
        publish(other, OTHER)
        assert stores.intents() == intents
        go.touch()
        assert process.wait() == 0, process.communicate()
    assert_published(stores, stores.clone)
    assert_published(stores, other, OTHER)


def test_a_run_that_was_rolled_back_while_alive_is_fenced(stores: Stores) -> None:
    """Another process has recovered the slow run: its commit push is rejected as a whole, with an error."""
    reached, go = pause_branches(stores)
    with publishing_process(stores.clone) as process:
        wait_for(reached, process)
        assert recover(stores.clone_again(), older_than=0, say=str) == 0
        go.touch()
        _, errors = process.communicate()
        assert process.returncode != 0
    assert "GitPushError" in errors
    assert (stores.refs(), stores.objects()) == ({}, {})
    assert not (stores.clone / f"{WEIGHTS[0]}.dvc").exists()
    assert (stores.clone / WEIGHTS[0]).exists()


def test_an_owner_does_not_take_over_a_live_rollback_of_its_run(
    stores: Stores, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes that delete for one intent could delete what a third has published since (`protocol_model.py`)."""
    monkeypatch.setattr(publish_module, "LONGEST_WAIT", 0.0)
    marks: list[lease_module.Lease] = []
    with open_remotes(stores.clone_again(), Credentials()) as remotes:

        def mark() -> None:
            (seen,) = remotes.refs.read_intents()
            assert seen.record is not None
            lease = lease_module.Lease(remotes.refs, seen.ref, seen.record.marked(remotes.me), seen.commit)
            marks.append(lease.__enter__())

        wire.before_commit[BRANCH] = mark
        with pytest.raises(GitPushError):
            publish(stores.clone)
        (lease,) = marks
        try:
            assert stores.refs() == {lease.ref: lease.commit}
        finally:
            lease.__exit__(None, None, None)


def test_a_rollback_that_was_taken_over_deletes_nothing(stores: Stores, wire: Wire) -> None:
    """The intent is read again right before each deletion: a process that slept past its lease finds it changed."""
    ref = leave_an_intent(stores, wire, stores.clone)
    before = identities(stores)
    other, third = stores.clone_again("other"), stores.clone_again("third")
    with open_remotes(other, Credentials()) as remotes:
        (seen,) = remotes.refs.read_intents()
        look = remotes.objects.look

        def look_after_a_sleep(oids: Any) -> Any:
            if stores.refs()[ref] != taken:
                with open_remotes(third, Credentials()) as another:
                    (marked,) = another.refs.read_intents()
                    assert marked.record is not None
                    another.refs.push(
                        refs_module.RefUpdate(
                            ref, marked.commit, another.refs.write_intent(marked.record.marked(another.me))
                        )
                    )
                    remotes.objects.look = look  # type: ignore[method-assign]
            return look(oids)

        taken = ""
        remotes.objects.look = look_after_a_sleep  # type: ignore[method-assign]
        with pytest.raises(RunError):
            remotes.recover(seen)
    assert identities(stores) == before


def test_recovering_a_run_that_is_published_meanwhile_changes_nothing(stores: Stores, wire: Wire) -> None:
    """The intent that was read a moment before is gone: this is not an error, and everything stays."""
    with open_remotes(stores.clone_again(), Credentials()) as remotes:
        seen: list[Any] = []
        wire.before_commit[BRANCH] = lambda: seen.extend(remotes.refs.read_intents())
        publish(stores.clone)
        assert remotes.recover(seen[0]) is False
    assert_published(stores, stores.clone)


def test_an_intent_expires_by_the_clock_of_its_observer(stores: Stores, wire: Wire, clock: Clock) -> None:
    """The first read only notes it, whatever its age; one that has not moved for ten minutes is recovered."""
    leave_an_intent(stores, wire, stores.clone)
    other = stores.clone_again()
    clock.ahead = 10_000.0
    assert recover(other, say=str) == 1
    clock.ahead += journal.LEASE - 60
    assert recover(other, say=str) == 1
    assert len(stores.objects()) == 2
    clock.ahead += 61
    assert recover(other, say=str) == 0
    assert (stores.refs(), stores.objects()) == ({}, {})


def test_an_intent_that_moves_does_not_expire(stores: Stores, wire: Wire, clock: Clock) -> None:
    """Each renewal starts the lease again for every observer."""
    ref = leave_an_intent(stores, wire, stores.clone)
    other = stores.clone_again()
    assert recover(other, say=str) == 1
    clock.ahead += journal.LEASE - 1
    record = record_of(stores, ref)
    plant_intent(stores, json.dumps({**record, "nonce": "another"}), name=record["id"])
    clock.ahead += 2
    assert recover(other, say=str) == 1
    assert len(stores.objects()) == 2


def test_an_owner_renews_its_intent_while_it_uploads(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each renewal is another commit, so that others see it move; the commit push expects the newest one."""
    monkeypatch.setattr(journal, "RENEWAL", 0.02)
    seen: set[str] = set()
    copy = shutil.copyfile

    def copy_slowly(source: Path, target: Path) -> None:
        while len(seen) < 3:
            seen.update(stores.refs().values())
        copy(source, target)

    monkeypatch.setattr(publish_module, "CONCURRENT_UPLOADS", 1)
    monkeypatch.setattr(shutil, "copyfile", copy_slowly)
    publish(stores.clone)
    assert_published(stores, stores.clone)


def test_an_owner_that_slept_past_its_lease_stops_by_itself(
    stores: Stores, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may roll it back: it publishes nothing, and rolls back itself."""
    copied: list[Path] = []
    copy = shutil.copyfile

    def copy_and_sleep(source: Path, target: Path) -> None:
        copied.append(copy(source, target))
        clock.ahead += journal.LEASE

    monkeypatch.setattr(publish_module, "CONCURRENT_UPLOADS", 1)
    monkeypatch.setattr(shutil, "copyfile", copy_and_sleep)
    with nothing_changes(stores), pytest.raises(SyncError, match="could not be renewed"):
        publish(stores.clone)
    assert copied


def test_a_termination_signal_rolls_a_publication_back(stores: Stores) -> None:
    """A cloud sends SIGTERM before it stops a machine."""
    reached, _ = pause_branches(stores)
    with nothing_changes(stores):
        with publishing_process(stores.clone) as process:
            wait_for(reached, process)
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate()
        assert process.returncode != 0
        assert "everything is rolled back" in errors


# ── other publications ────────────────────────────────────────────────────────────────────────────────────────────────


NEWER = {
    "protocol": 99,
    "id": "planted",
    "state": "uploading",
    "branch": "kaggle-train-x",
    "base": "0" * 40,
    "owner": {"clone": "another", "process": "1-1"},
    "objects": [],
    "renewals": 0,
}


@pytest.mark.parametrize("text", [json.dumps(NEWER), '{"protocol": 1}', "no JSON", "[]"])
def test_an_intent_of_another_version_is_left_alone_and_reported(stores: Stores, text: str) -> None:
    """Its owner may be a live process of a newer version; it does not stop this publication."""
    ref = plant_intent(stores, text)
    commit = stores.refs()[ref]
    lines: list[str] = []
    assert recover(stores.clone, older_than=0, say=lines.append) == 1
    assert any(ref in line and "left alone" in line for line in lines)
    publish(stores.clone)
    assert stores.refs().pop(ref) == commit
    assert_branches_are_complete(stores)


def test_a_failure_next_to_an_intent_of_another_version_reports_what_is_left(stores: Stores) -> None:
    """That intent may name our objects: either they are deleted, or the error does not claim it."""
    plant_intent(stores, '{"protocol": 99}')
    refuse(stores, RUNS)
    with pytest.raises(GitPushError) as caught:
        publish(stores.clone)
    assert ("no new object" in str(caught.value)) == (stores.objects() == {})


def test_one_intent_that_cannot_be_recovered_does_not_stop_the_others(stores: Stores, wire: Wire) -> None:
    """Every intent is tried, then the first error is raised."""
    others = [stores.clone_again(name) for name in ("a", "b")]
    for seed, clone in enumerate(others):
        write_run(clone, seed=seed)
    first = leave_an_intent(stores, wire, others[0], "kaggle-train-a")
    wire.fault = lambda words: "refused" if created_branch(words) else "refused" if wire_is_cut(words) else ""
    cut: list[bool] = []

    def wire_is_cut(words: list[str]) -> bool:
        if created_branch(words):
            cut.append(True)
        return bool(cut)

    with pytest.raises(RunError):
        publish(others[1], "kaggle-train-b")
    wire.fault = lambda words: "refused" if words[1] == "push" and any(first in word for word in words) else ""
    with pytest.raises(GitPushError):
        recover(stores.clone, older_than=0, say=str)
    assert stores.intents() == [first]
    assert len(stores.objects()) == 2
    wire.fault = lambda _words: ""
    assert recover(stores.clone, older_than=0, say=str) == 0
    assert (stores.refs(), stores.objects()) == ({}, {})


def test_the_objects_of_a_dead_run_do_not_count_as_stored_before(stores: Stores, wire: Wire) -> None:
    """Another run uses the dead run's objects and fails too: in the end nothing is left of either."""
    leave_an_intent(stores, wire, stores.clone)
    second, third = stores.clone_again("second"), stores.clone_again("third")
    write_run(second)
    wire.before_commit[OTHER] = lambda: recover(third, older_than=0, say=str)
    wire.fault = lambda words: "refused" if created_branch(words) == OTHER else ""
    with pytest.raises(GitPushError):
        publish(second, OTHER)
    assert recover(third, older_than=0, say=str) == 0
    assert (stores.refs(), stores.objects()) == ({}, {})


def test_a_run_keeps_the_objects_that_it_shares_with_a_dead_run_that_is_recovered(stores: Stores, wire: Wire) -> None:
    """The live run has found the dead run's objects; the recovery keeps them, since its intent names them."""
    leave_an_intent(stores, wire, stores.clone)
    second, third = stores.clone_again("second"), stores.clone_again("third")
    write_run(second)
    wire.before_commit[OTHER] = lambda: recover(third, older_than=0, say=str)
    assert publish(second, OTHER).uploaded == 0
    assert_published(stores, second, OTHER)


@pytest.mark.parametrize("failing", ["the one that uploaded the objects", "the one that found them"])
def test_of_two_runs_that_publish_the_same_content_at_once_one_may_fail(
    stores: Stores, wire: Wire, failing: str
) -> None:
    """The other's branch has all its objects, no matter which run has uploaded them."""
    second = stores.clone_again()
    write_run(second)
    first_ready, second_ready, failed = threading.Event(), threading.Event(), threading.Event()
    loser = BRANCH if failing == "the one that uploaded the objects" else OTHER
    outcomes: dict[str, object] = {}

    def run(clone: Path, branch: str) -> None:
        try:
            outcomes[branch] = publish(clone, branch)
        except RunError as error:
            outcomes[branch] = error
        if branch == loser:
            failed.set()

    def at_first() -> None:
        first_ready.set()
        assert second_ready.wait(30)
        assert loser == BRANCH or failed.wait(30)

    def at_second() -> None:
        second_ready.set()
        assert loser == OTHER or failed.wait(30)

    wire.before_commit = {BRANCH: at_first, OTHER: at_second}
    wire.fault = lambda words: "refused" if created_branch(words) == loser else ""
    threads = [threading.Thread(target=run, args=job) for job in ((stores.clone, BRANCH), (second, OTHER))]
    threads[0].start()
    assert first_ready.wait(30)
    threads[1].start()
    for thread in threads:
        thread.join()
    winner, clone = (OTHER, second) if loser == BRANCH else (BRANCH, stores.clone)
    assert isinstance(outcomes[loser], GitPushError)
    assert isinstance(outcomes[winner], Published)
    assert list(stores.refs()) == [f"refs/heads/{winner}"]
    assert_published(stores, clone, winner)


def test_a_publication_that_waits_for_a_dead_rollback_takes_it_over(
    stores: Stores, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine died during a rollback: the next run of the same content finishes it, then publishes."""
    ref = leave_an_intent(stores, wire, stores.clone)
    record = record_of(stores, ref)
    gone = {"clone": "a dead machine", "process": "1-1"}
    plant_intent(stores, json.dumps({**record, "state": "aborting", "owner": gone}), name=record["id"])
    second = stores.clone_again()
    write_run(second)
    monkeypatch.setattr(journal, "LEASE", 2.0)
    monkeypatch.setattr(journal, "RENEWAL", 0.2)
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.2)))
    lines: list[str] = []
    publish(second, OTHER, say=lines.append)
    assert any("waiting" in line for line in lines)
    assert_published(stores, second, OTHER)
    assert list(stores.refs()) == [f"refs/heads/{OTHER}"]


def test_a_folder_that_a_branch_names_keeps_its_files(stores: Stores, wire: Wire) -> None:
    """While a dead run is not recovered yet, a user pushes a folder with the same file, with DVC itself."""
    from dvc.repo import Repo

    leave_an_intent(stores, wire, stores.clone)
    other = stores.clone_again()
    file = other / "models" / "best.pt"
    file.parent.mkdir()
    shutil.copyfile(stores.clone / WEIGHTS[0], file)
    with Repo(str(other)) as repo:
        repo.add([str(file.parent)])
        repo.push()
    run_git("switch", "--quiet", "--create", "mine", cwd=other)
    run_git("add", "models.dvc", ".gitignore", cwd=other)
    run_git("commit", "--quiet", "--message=models", cwd=other)
    run_git("push", "--quiet", "origin", "mine", cwd=other)
    assert recover(stores.clone_again("third"), older_than=0, say=str) == 0
    assert first_object(stores).exists()
    assert not stores.object_path(md5_of((stores.clone / WEIGHTS[1]).read_bytes())).exists()


def test_uploads_after_another_process_has_rolled_the_run_back_are_deleted_too(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process recovers during an upload: the owner deletes the copies that it could not see."""
    other = stores.clone_again()
    copy = shutil.copyfile
    copied: list[str] = []

    def slow(source: Path, target: Path) -> None:
        copy(source, target)
        copied.append(str(target))
        if len(copied) == 2:
            kept = Path(target).read_bytes()
            alive = set(lease_module.ALIVE)
            lease_module.ALIVE.clear()  # another machine does not know this process
            assert recover(other, older_than=0, say=str) == 0
            lease_module.ALIVE.update(alive)
            Path(target).write_bytes(kept)  # on Drive there is no temporary file that a recovery could delete

    monkeypatch.setattr(publish_module, "CONCURRENT_UPLOADS", 1)
    monkeypatch.setattr(shutil, "copyfile", slow)
    with nothing_changes(stores), pytest.raises(SyncError):
        publish(stores.clone)


def test_an_incomplete_mirror_is_not_used(stores: Stores) -> None:
    """A kill during its creation leaves a folder that the next call replaces."""
    refs = Refs(stores.clone, Credentials())
    run_git("init", "--quiet", "--bare", refs._mirror.with_suffix(".part"), cwd=stores.clone)
    publish(stores.clone)
    assert_published(stores, stores.clone)


def test_locks_that_a_killed_process_left_in_the_mirror_are_removed(stores: Stores) -> None:
    """Otherwise every later fetch of the clone would fail."""
    publish(stores.clone)
    mirror = Refs(stores.clone, Credentials())._mirror
    head = next((mirror / "refs").rglob("*kaggle*"), mirror / "refs/heads/main")
    for name in ("packed-refs.lock", "shallow.lock", f"{head.relative_to(mirror)}.lock"):
        (mirror / name).parent.mkdir(parents=True, exist_ok=True)
        (mirror / name).touch()
    publish(stores.clone, OTHER)
    assert list(mirror.rglob("*.lock")) == []


def test_two_processes_of_one_clone_read_one_after_the_other(stores: Stores) -> None:
    """An older fetch of one process could remove refs from the mirror that the other has just read."""
    plant_intent(stores, "{}")
    first, second = Refs(stores.clone, Credentials()), Refs(stores.clone, Credentials())
    seen: list[str] = []
    thread = threading.Thread(target=lambda: seen.extend(item.ref for item in second.read_intents()))
    with first._fetched("refs/intents/*"):
        thread.start()
        thread.join(1)
        assert thread.is_alive()
        assert seen == []
    thread.join(60)
    assert seen == stores.intents()


def test_a_renewal_in_progress_does_not_prevent_the_end_of_a_lease(
    stores: Stores, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ref is deleted from the commit of the last renewal."""
    ref = leave_an_intent(stores, wire, stores.clone)
    with open_remotes(stores.clone_again(), Credentials()) as remotes:
        (seen,) = remotes.refs.read_intents()
        assert seen.record is not None
        monkeypatch.setattr(journal, "RENEWAL", 0.01)
        with lease_module.Lease(remotes.refs, seen.ref, seen.record.marked(remotes.me), seen.commit) as lease:
            first = lease.commit
            while lease.commit == first:
                threading.Event().wait(0.01)
            lease.end()
    assert ref not in stores.refs()


def test_a_push_waits_for_another_push_that_holds_the_lock_of_the_ref(stores: Stores) -> None:
    """Git rejects it at once before anything has happened; a moment later it succeeds."""
    refs = Refs(stores.clone, Credentials())
    ref = "refs/heads/kaggle-train-x"
    lock = stores.origin / f"{ref}.lock"
    lock.touch()
    threading.Timer(0.5, lock.unlink).start()
    refs.push(RefUpdate(ref, None, refs.head()))
    assert stores.refs() == {ref: refs.head()}


def test_a_ref_at_another_commit_is_not_a_lock(stores: Stores) -> None:
    """The later push fails at once, with the host's message."""
    refs = Refs(stores.clone, Credentials())
    ref = "refs/heads/kaggle-train-x"
    refs.push(RefUpdate(ref, None, refs.head()))
    other = run_git("commit-tree", "HEAD^{tree}", "-m", "other", cwd=stores.clone)
    with pytest.raises(GitPushError) as caught:
        refs.push(RefUpdate(ref, None, other))
    assert not refs_module.PASSES.search(caught.value.what)
    message = subprocess.run(
        ["git", "update-ref", ref, refs.head(), "0" * 40], cwd=stores.origin, capture_output=True, text=True
    ).stderr
    assert "cannot lock ref" in message
    assert not refs_module.PASSES.search(message)
