"""Claims on the vault, against a real Git remote, a real DVC remote and real processes that die.

Faults are put in where this project ends: between it and git (`wire`), and between it and the file system.
"""

from __future__ import annotations

import errno
import hashlib
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
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, RUN, SMALL_FILES, WEIGHTS, Stores, is_alive, run_git, write_run

from lib.errors import DvcPushError, GitPushError, InDoubt, RunError, SyncError
from lib.process import CommandTimedOut, Completed, run_command
from lib.remotes.credentials import Credentials
from lib.sync import Publication, Published, recover, sync_outputs
from lib.sync import intent as journal
from lib.sync import lease as lease_module
from lib.sync import publish as publish_module
from lib.sync import refs as refs_module
from lib.sync import vault as vault_module
from lib.sync.refs import Refs, RefUpdate

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of DVC's own

BRANCH = "kaggle-train-detection-exp001-20250102-030405"
HEAD = f"refs/heads/{BRANCH}"
OTHER = "kaggle-train-detection-exp001-20250102-040506"
STAMP = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)

REFUSE_BRANCHES = """
while read old new ref; do
  case "$ref" in refs/heads/kaggle-train-*) echo "no new branches today" >&2; exit 1;; esac
done
"""


# ── doing ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def publication(clone: Path, branch: str = BRANCH) -> Publication:
    """Give the publication of the run in a clone."""
    return Publication(clone, branch, "Training of exp001\n", RUN, WEIGHTS, STAMP)


def publish(clone: Path, branch: str = BRANCH, *, say: Callable[[str], object] = str) -> Published:
    """Publish the run in a clone."""
    return sync_outputs(publication(clone, branch), say=say)


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
    """Publish in a process of its own, which is ended with all it started when the test leaves."""
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
    """Return what a file says as soon as it is there; the process that writes it must live."""
    while not path.exists() or not path.read_text(encoding="utf-8"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return path.read_text(encoding="utf-8").strip()


def wait_for_end(pid: int) -> None:
    """Return when a process that is no child of this one has ended."""
    while is_alive(pid):
        time.sleep(0.02)


def hold_branches(stores: Stores) -> tuple[Path, Path]:
    """Let the Git remote hold every push of a branch: it writes its number to `reached` and waits for `go`.

    It gives up after a minute, so that a test that fails leaves nothing running.
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
    """What stands between this project and git: it can cut a command off, or do something just before one.

    A fault names what happens to a command that speaks to the remote: `refused` (it does not happen and says so),
    `late` (it does not happen and gives no answer), `lost` (it happens and gives no answer), or nothing.
    """

    def __init__(self) -> None:
        self.fault: Fault = lambda _words: ""
        self.before_commit: dict[str, Callable[[], object]] = {}
        self.spoken: list[list[str]] = []

    def run_command(self, command: Sequence[str | Path], **options: Any) -> Completed:
        """Run a command with the fault that was set."""
        words = [str(word) for word in command]
        if words[1] not in ("push", "ls-remote", "fetch"):
            return run_command(command, **options)
        if created := created_branch(words):
            self.before_commit.pop(created, lambda: None)()
        self.spoken.append(words)
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
    """Give the branch that a command would create on the remote: only the commit push does."""
    if words[1] != "push":
        return ""
    return next((word.partition(":refs/heads/")[2] for word in words if ":refs/heads/" in word and word[0] != "-"), "")


def when(fits: Callable[[list[str]], object], fault: str) -> Fault:
    """Cut every command that fits."""
    return lambda words: fault if fits(words) else ""


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    """Give the wire to the Git remote."""
    wire = Wire()
    monkeypatch.setattr(refs_module, "run_command", wire.run_command)
    return wire


class Clock:
    """A clock that can jump, for the machine that slept."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self._real = time.monotonic

    def monotonic(self) -> float:
        """Give the time."""
        return self._real() + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Give the clock by which leases expire."""
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock.monotonic)
    return clock


# ── looking ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def md5(path: Path) -> str:
    """Give an object's name."""
    return hashlib.md5(path.read_bytes()).hexdigest()


def identities(stores: Stores) -> dict[Path, tuple[int, int]]:
    """Give every file of the DVC remote with what changes when it is written again."""
    files = [stores.storage / name for name in stores.objects()]
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in files}


def assert_branches_are_whole(stores: Stores) -> None:
    """Check that every object a visible branch names stands on the DVC remote, with its content."""
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
            assert md5(path) == wanted


def assert_published(stores: Stores, clone: Path, branch: str = BRANCH) -> None:
    """Check that the branch has every object of the run, and no intent is left."""
    assert f"refs/heads/{branch}" in stores.refs()
    assert_branches_are_whole(stores)
    for name in WEIGHTS:
        assert stores.object_path(md5(clone / name)).read_bytes() == (clone / name).read_bytes()
    assert stores.intents() == []


@contextmanager
def nothing_changes(stores: Stores) -> Iterator[None]:
    """Both remotes, the models and the clone's status are after the block what they were before it."""

    def world() -> dict[str, object]:
        clone = stores.clone
        return {
            "refs": stores.refs(),
            "objects": identities(stores),
            "models": {name: (clone / name).read_bytes() for name in WEIGHTS},
            "files": sorted(path for path in (clone / "artifacts").rglob("*") if path.is_file()),
            "status": run_git("status", "--porcelain", "--untracked-files=all", cwd=clone),
            "index": run_git("ls-files", "--stage", cwd=clone),
            "local refs": run_git("for-each-ref", cwd=clone),
            "head": run_git("rev-parse", "--symbolic-full-name", "HEAD", cwd=clone),
        }

    before = world()
    yield
    assert world() == before


def show_json(stores: Stores, ref: str) -> dict[str, Any]:
    """Give the record of an intent."""
    record: dict[str, Any] = json.loads(run_git("show", f"{ref}:intent.json", cwd=stores.origin))
    return record


def plant_intent(stores: Stores, text: str, name: str = "planted") -> str:
    """Put an intent on the Git remote that this version did not write."""
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
    """Give a commit beside the main branch, with the same files."""
    return run_git("commit-tree", "main^{tree}", "-p", "main", "-m", "side", cwd=stores.origin)


def leave_an_intent(stores: Stores, wire: Wire, clone: Path, branch: str = BRANCH) -> str:
    """Publish up to the commit push and lose the network there for good: objects and an intent stay. Give its ref."""
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


def test_a_published_branch_gives_the_same_bytes_to_a_second_clone(stores: Stores) -> None:
    """What users do to get a model: check the branch out and `dvc pull`, by DVC itself."""
    from dvc.repo import Repo

    published = publish(stores.clone)
    assert published == Published(BRANCH, stores.refs()[HEAD], 10_000)
    assert_published(stores, stores.clone)
    second = stores.clone_again(branch=BRANCH)
    with Repo(str(second)) as repo:
        repo.pull()
    for name in (*WEIGHTS, *SMALL_FILES):
        assert (second / name).read_bytes() == (stores.clone / name).read_bytes()


def test_a_publication_holds_the_whole_folder_and_nothing_else(stores: Stores) -> None:
    """Ignored pictures too; the models themselves are not in Git, and what is outside the folder is not touched."""
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
    assert set(changed[1::2]) == {*expected, f"{RUN}/train/weights/.gitignore"}
    assert set(changed[:-1:2]) == {"A"}


def test_files_that_are_to_be_left_out_stay_here(stores: Stores) -> None:
    """By name, wherever they are in the folder."""
    run = publication(stores.clone)
    sync_outputs(Publication(**{**vars(run), "leave_out": frozenset({"results.png"})}), say=str)
    names = run_git("ls-tree", "-r", "--name-only", BRANCH, cwd=stores.origin).splitlines()
    assert f"{RUN}/train/results.png" not in names
    assert f"{RUN}/train/args.yaml" in names


def test_publishing_touches_neither_index_nor_head_nor_branch_nor_status(stores: Stores) -> None:
    """Somebody may be in the middle of a change."""
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
    """A notebook clones a commit, not a branch."""
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


def test_a_retry_says_so_and_changes_nothing(stores: Stores) -> None:
    """A cell is run twice, or a session goes on in another one."""
    first = publish(stores.clone)
    said: list[str] = []
    with nothing_changes(stores):
        again = publish(stores.clone, say=said.append)
    assert again == Published(BRANCH, first.commit, 0, before=True)
    assert any("published already" in line for line in said)


def test_two_branches_of_the_same_content_share_its_objects(stores: Stores) -> None:
    """The second sends nothing, and does not write the object again."""
    publish(stores.clone)
    before = identities(stores)
    second = stores.clone_again()
    write_run(second)
    assert publish(second, OTHER).uploaded == 0
    assert identities(stores) == before
    assert {HEAD, f"refs/heads/{OTHER}"} == set(stores.refs())
    assert_published(stores, second, OTHER)


def test_nobody_is_given_advice_by_dvc(stores: Stores) -> None:
    """`git add …` is what the publication does itself; in a notebook the advice would mislead."""
    with publishing_process(stores.clone) as process:  # where DVC's logger writes to the real streams
        shown = "".join(process.communicate())
    assert "Phase 4" in shown
    for advice in ("git add", "To track", "autostage"):
        assert advice not in shown


def test_files_are_uploaded_side_by_side(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits here until the other one has begun."""
    begun = threading.Barrier(len(WEIGHTS), timeout=30)
    copy = shutil.copyfile

    def copy_together(source: Path, target: Path) -> None:
        begun.wait()
        copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", copy_together)
    publish(stores.clone)
    assert_published(stores, stores.clone)


def test_uploads_show_bytes_time_and_rate(stores: Stores, capsys: pytest.CaptureFixture[str]) -> None:
    """One bar for all of them, to the last byte; none where there is nothing to send."""
    publish(stores.clone)
    assert re.search(r"\r  uploading: 0\.0 MiB in .* s \(.* MiB/s\) *\n", capsys.readouterr().out)
    publish(stores.clone, OTHER)
    assert "uploading" not in capsys.readouterr().out


def test_the_four_phases_are_told(stores: Stores) -> None:
    """In order, as the users' own manual names them."""
    said: list[str] = []
    publish(stores.clone, say=said.append)
    phases = [line.split(" (")[0] for line in said if line.startswith("Phase")]
    assert phases == ["Phase 1: DVC add", "Phase 2: DVC push", "Phase 3: Git staging", "Phase 4: Git push"]


# ── failing and undoing ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_refused_branch_leaves_nothing(stores: Stores) -> None:
    """No branch, no intent, no object, no `.dvc` file, no ignore line; the models where they are; and the reason."""
    stores.write_hook("pre-receive", REFUSE_BRANCHES)
    with nothing_changes(stores), pytest.raises(GitPushError) as caught:
        publish(stores.clone)
    assert stores.objects() == {}
    told = str(caught.value)
    for part in ("Git push failed", "no new branches today", "State: everything is undone", WEIGHTS[0], "What to do: "):
        assert part in told


def test_a_retry_after_a_refusal_publishes_once(stores: Stores) -> None:
    """The first failure leaves nothing in the way of the second call."""
    stores.write_hook("pre-receive", REFUSE_BRANCHES)
    with pytest.raises(GitPushError):
        publish(stores.clone)
    stores.remove_hook("pre-receive")
    assert publish(stores.clone).uploaded == 10_000
    assert_published(stores, stores.clone)
    assert list(stores.refs()) == [HEAD]


def test_ignore_lines_and_dvc_files_that_stood_there_come_back(stores: Stores) -> None:
    """What the user wrote there is not the publication's to remove."""
    folder = (stores.clone / WEIGHTS[0]).parent
    (folder / ".gitignore").write_text("# mine, without a line's end\n/cache", encoding="utf-8")
    (folder / "best.pt.dvc").write_text(
        f"outs:\n- md5: {'ab' * 16}\n  size: 1\n  hash: md5\n  path: best.pt\n", encoding="utf-8"
    )
    stores.write_hook("pre-receive", REFUSE_BRANCHES)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(GitPushError):
        publish(stores.clone)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_git_remote_that_takes_no_intent_leaves_nothing_and_is_blamed(stores: Stores) -> None:
    """A token that may only read: no object is sent, and nobody is sent to look after Google Drive."""
    stores.write_hook("pre-receive", "echo 'read-only token' >&2; exit 1")
    with nothing_changes(stores), pytest.raises(GitPushError) as caught:
        publish(stores.clone)
    assert "read-only token" in str(caught.value)
    assert "DVC push failed" not in str(caught.value)


def test_where_a_host_takes_branches_alone_the_intent_is_a_branch_and_gone_afterwards(stores: Stores) -> None:
    """Chosen by itself, said, and seen by who recovers; nothing of it is left beside the publication."""
    stores.write_hook(
        "pre-receive", "while read old new ref; do case $ref in refs/heads/*|refs/tags/*) ;; *) exit 1;; esac; done"
    )
    said: list[str] = []
    publish(stores.clone, say=said.append)
    assert_published(stores, stores.clone)
    assert any("refuses refs/intents/" in line for line in said)


def test_a_failure_is_undone_where_the_intent_is_a_branch(stores: Stores) -> None:
    """The place is another, the protocol is not."""
    stores.write_hook(
        "pre-receive", "while read old new ref; do case $ref in refs/heads/kaggle-intents/*) ;; *) exit 1;; esac; done"
    )
    with nothing_changes(stores), pytest.raises(GitPushError, match="Git push failed"):
        publish(stores.clone)


def test_a_git_remote_that_cannot_be_read_is_not_told_as_a_failure_of_the_dvc_remote(
    stores: Stores, wire: Wire
) -> None:
    """Every step that asks Git blames Git; the remedy names no Drive."""
    wire.fault = lambda words: (
        "refused" if words[1] == "ls-remote" and "refs/heads/kaggle-checkpoint-*" in words else ""
    )
    with nothing_changes(stores), pytest.raises(SyncError) as caught:
        publish(stores.clone)
    assert not isinstance(caught.value, DvcPushError)
    assert "Drive" not in str(caught.value)


def test_a_commit_push_without_an_answer_is_a_git_push_error(stores: Stores, wire: Wire) -> None:
    """A time-out is as much a failed push as a refusal is."""
    wire.fault = when(created_branch, "late")
    with nothing_changes(stores), pytest.raises(GitPushError) as caught:
        publish(stores.clone)
    assert "Git push failed" in str(caught.value)


def test_a_dvc_remote_that_cannot_be_asked_leaves_nothing(stores: Stores) -> None:
    """Here its folder `files` is a file."""
    (stores.storage / "files").write_text("in the way", encoding="utf-8")
    with nothing_changes(stores), pytest.raises(DvcPushError) as caught:
        publish(stores.clone)
    for part in ("DVC push failed", "State: everything is undone", WEIGHTS[0], "What to do: "):
        assert part in str(caught.value)


def test_a_dvc_remote_that_fills_up_in_mid_copy_leaves_nothing(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first file is there, half of the second; both go, and so does the half."""
    copied: list[str] = []

    def copy_half(source: Path, target: Path) -> None:
        copied.append(str(target))
        content = Path(source).read_bytes()
        Path(target).write_bytes(content if len(copied) == 1 else content[:2500])
        if len(copied) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(publish_module, "SIDE_BY_SIDE", 1)
    monkeypatch.setattr(shutil, "copyfile", copy_half)
    with nothing_changes(stores), pytest.raises(DvcPushError) as caught:
        publish(stores.clone)
    assert len(copied) == 2
    assert stores.objects() == {}
    for part in ("DVC push failed", "No space left on device", "State: everything is undone"):
        assert part in str(caught.value)


def test_an_interrupt_in_mid_upload_leaves_nothing(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C is undone like any failure, and stays Ctrl-C."""

    def interrupted(_source: Path, _target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfile", interrupted)
    with nothing_changes(stores), pytest.raises(KeyboardInterrupt):
        publish(stores.clone)


def test_an_upload_that_does_not_arrive_whole_is_not_published(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that says yes and keeps half of it is found out before the branch."""
    monkeypatch.setattr(shutil, "copyfile", lambda _source, target: Path(target).write_bytes(b"half"))
    with nothing_changes(stores), pytest.raises(DvcPushError, match="4 bytes instead of 5000"):
        publish(stores.clone)


def test_a_model_that_is_written_during_its_upload_is_not_published(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The object would have another content than its name."""
    copy = shutil.copyfile

    def copy_and_write(source: Path, target: Path) -> None:
        copy(source, target)
        Path(source).write_bytes(Path(source).read_bytes()[::-1])

    monkeypatch.setattr(shutil, "copyfile", copy_and_write)
    with pytest.raises(SyncError, match="was written while it was published"):
        publish(stores.clone)
    assert (stores.refs(), stores.objects()) == ({}, {})


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(b"")], ids=["missing", "empty"])
def test_a_missing_or_empty_model_is_told_before_anything_is_asked(
    stores: Stores, wire: Wire, spoil: Callable[[Path], object]
) -> None:
    """No remote is spoken to."""
    spoil(stores.clone / WEIGHTS[0])
    with pytest.raises(SyncError, match=r"best\.pt is missing or empty"):
        publish(stores.clone)
    assert wire.spoken == []
    assert stores.objects() == {}


def test_an_object_that_stood_there_before_stays_after_a_failure(stores: Stores) -> None:
    """It is somebody's, although no branch names it; what this run added goes."""
    path = stores.object_path(md5(stores.clone / WEIGHTS[0]))
    path.parent.mkdir(parents=True)
    shutil.copyfile(stores.clone / WEIGHTS[0], path)
    stores.write_hook("pre-receive", REFUSE_BRANCHES)
    with nothing_changes(stores), pytest.raises(GitPushError):
        publish(stores.clone)
    assert list(stores.objects()) == [path.relative_to(stores.storage).as_posix()]


def test_a_damaged_object_that_stood_there_stops_the_publication_and_stays(stores: Stores) -> None:
    """A branch that names it could not be pulled; deleting it is not this run's to decide."""
    path = stores.object_path(md5(stores.clone / WEIGHTS[0]))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"cut")
    with nothing_changes(stores), pytest.raises(DvcPushError, match="3 bytes instead of 5000"):
        publish(stores.clone)


@pytest.mark.parametrize("named_by", ["branch", "nested branch", "annotated tag", "history", "merge"])
def test_an_object_that_anything_on_the_git_remote_names_stays_after_a_failure(
    stores: Stores, wire: Wire, named_by: str
) -> None:
    """Another run published the same content in the middle of this one, which sent it and then failed."""
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
        elif named_by == "merge":  # whose parents do not have it
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


def test_a_branch_of_that_name_with_other_content_is_not_touched(stores: Stores) -> None:
    """Two runs of one second, say."""
    run_git("update-ref", HEAD, "main", cwd=stores.origin)
    with nothing_changes(stores), pytest.raises(GitPushError) as caught:
        publish(stores.clone)
    assert BRANCH in str(caught.value)
    assert "other content" in str(caught.value)
    assert stores.objects() == {}


def test_a_branch_of_that_name_that_appears_in_between_is_not_touched(stores: Stores, wire: Wire) -> None:
    """The last push creates or fails; it never moves."""
    main = run_git("rev-parse", "main", cwd=stores.origin)
    wire.before_commit[BRANCH] = lambda: run_git("update-ref", HEAD, main, cwd=stores.origin)
    with pytest.raises(GitPushError) as caught:
        publish(stores.clone)
    assert "supports atomic pushes" not in str(caught.value)  # git's own message speaks of them, but that is not it
    assert stores.refs() == {HEAD: main}
    assert stores.objects() == {}


def test_a_clone_whose_origin_moved_asks_the_new_one(stores: Stores) -> None:
    """What it kept of the old one decides nothing: an unfinished intent is found where it now is."""
    stores.write_hook("pre-receive", REFUSE_BRANCHES)
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


def assert_settles(stores: Stores, other: Path, branch: str, objects: dict[str, bytes], error: RunError | None) -> None:
    """Check after a fault: branches are whole, the error tells the truth, and recovering gives all or nothing."""
    assert_branches_are_whole(stores)
    published = f"refs/heads/{branch}" in stores.refs()
    if error is None:
        assert published
    elif "everything is undone" in str(error):
        assert not published
        assert (stores.intents(), stores.objects()) == ([], objects)
    if error is not None:
        assert recover(other, older_than=0, say=str) == 0
    assert stores.intents() == []
    assert_branches_are_whole(stores)
    if f"refs/heads/{branch}" in stores.refs():
        assert_published(stores, stores.clone, branch)
    else:
        assert stores.objects() == objects


@pytest.mark.slow
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from-then-on"])
@pytest.mark.parametrize("kind", ["refused", "lost"])
def test_a_fault_at_any_word_to_the_git_remote_ends_in_all_or_nothing(
    stores: Stores, wire: Wire, kind: str, lasting: bool
) -> None:
    """The first command fails, then the second, …, until the publication runs through."""
    other = stores.clone_again()
    for step in range(1, 30):
        write_run(stores.clone, seed=step)
        branch, objects = f"kaggle-train-{step}", stores.objects()
        wire.spoken = []
        wire.fault = lambda _words, at=step: (
            kind if len(wire.spoken) == at or (lasting and len(wire.spoken) > at) else ""
        )  # type: ignore[misc]
        error = None
        try:
            publish(stores.clone, branch)
        except RunError as caught:
            error = caught
        reached = len(wire.spoken) >= step
        wire.fault = lambda _words: ""
        assert_settles(stores, other, branch, objects, error)
        if not reached:
            assert step > 5
            return
    pytest.fail("a publication speaks that often to the Git remote?")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["refused", "lost"])
def test_a_fault_at_any_word_of_an_undoing_ends_in_all_or_nothing(stores: Stores, wire: Wire, kind: str) -> None:
    """The branch is refused, and then one command of the clean-up fails too."""
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
        assert_settles(stores, other, branch, objects, caught.value)
        if len(after) <= step:
            assert step > 4
            return
    pytest.fail("an undoing speaks that often to the Git remote?")


# ── lost answers ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_publication_whose_last_answer_is_lost_counts_as_done(stores: Stores, wire: Wire) -> None:
    """The Git remote is asked, and shows the branch."""
    wire.fault = when(created_branch, "lost")
    assert publish(stores.clone) == Published(BRANCH, stores.refs()[HEAD], 10_000)
    assert_published(stores, stores.clone)


def test_a_push_that_arrives_after_it_was_asked_for_counts_as_done(stores: Stores, wire: Wire) -> None:
    """It stood in a queue: first there is no branch, then there is, with no intent left to undo."""
    held: list[list[str]] = []

    def fault(words: list[str]) -> str:
        if created_branch(words):
            held.append(words)
            return "late"
        if held and words[1] == "fetch":  # the question was answered with no; now the push arrives
            run_command(held.pop(), cwd=stores.clone)
        return ""

    wire.fault = fault
    assert publish(stores.clone).commit == stores.refs()[HEAD]
    assert_published(stores, stores.clone)
    for name in WEIGHTS:
        assert (stores.clone / f"{name}.dvc").exists()


def test_an_interrupt_in_the_last_push_leaves_a_finished_publication_whole(stores: Stores, wire: Wire) -> None:
    """Ctrl-C came when there was nothing left to undo."""

    def interrupt(words: list[str]) -> str:
        if created_branch(words):
            run_command(words, cwd=stores.clone)
            raise KeyboardInterrupt
        return ""

    wire.fault = interrupt
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        publish(stores.clone, say=said.append)
    assert_published(stores, stores.clone)
    assert said[-1] == f"{BRANCH} is published."


def lose_the_network_at_the_last_push(wire: Wire, kind: str) -> None:
    """Let the commit push happen (`lost`) or not (`late`), and let nothing be answered from then on."""
    cut: list[bool] = []

    def fault(words: list[str]) -> str:
        if created_branch(words):
            cut.append(True)
            return kind
        return "refused" if cut else ""

    wire.fault = fault


@pytest.mark.parametrize("kind", ["lost", "late"])
@pytest.mark.parametrize("settler", ["again", "recover", "recover here"])
def test_a_run_in_doubt_keeps_everything_until_it_is_settled(
    stores: Stores, wire: Wire, kind: str, settler: str
) -> None:
    """Whether it is published cannot be known: nothing is deleted, and each way to settle it gives all or nothing."""
    lose_the_network_at_the_last_push(wire, kind)
    with pytest.raises(InDoubt) as caught:
        publish(stores.clone)
    wire.fault = lambda _words: ""
    happened = kind == "lost"
    assert (HEAD in stores.refs(), len(stores.intents())) == (happened, 0 if happened else 1)
    assert len(stores.objects()) == 2
    for name in WEIGHTS:
        assert (stores.clone / name).exists()
        assert (stores.clone / f"{name}.dvc").exists()
    for part in (BRANCH, "State: everything is kept", "What to do: ", "recover"):
        assert part in str(caught.value)
    if settler == "again":
        assert publish(stores.clone).before is happened
    else:
        clone = stores.clone if settler == "recover here" else stores.clone_again()
        assert recover(clone, older_than=0, say=str) == 0
    if settler == "again" or happened:
        assert_published(stores, stores.clone)
    else:
        assert (stores.refs(), stores.objects()) == ({}, {})


def test_a_failed_retry_of_a_run_in_doubt_removes_its_dvc_files(stores: Stores, wire: Wire) -> None:
    """They were this run's own, although an earlier call wrote them."""
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
    """The intent stands at our own new commit: it is still ours, whatever became of the answer."""
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
        pushes.append(words)  # the first declares, the second is a renewal; there is no third one that could mend it
        if len(pushes) == 2:
            monkeypatch.setattr(journal, "RENEWAL", 100.0)
            renewed.set()
            return "lost"
        return ""

    monkeypatch.setattr(shutil, "copyfile", copy_after_renewals)
    wire.fault = fault
    publish(stores.clone)
    assert_published(stores, stores.clone)


# ── the dead and the living ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_killed_before_its_branch_is_settled_from_another_clone(stores: Stores) -> None:
    """Kill -9 between the last push's start and its end; the push itself goes on alone, and is refused."""
    reached, go = hold_branches(stores)
    with publishing_process(stores.clone) as process:
        pushing = int(wait_for(reached, process))
        process.kill()
        process.wait()
    (ref,) = stores.intents()
    assert show_json(stores, ref)["state"] == "uploading"
    assert len(stores.objects()) == 2
    said: list[str] = []
    assert recover(stores.clone_again(), older_than=0, say=said.append) == 0
    assert any(BRANCH in line for line in said)
    assert (stores.refs(), stores.objects()) == ({}, {})
    go.touch()
    wait_for_end(pushing)
    assert (stores.refs(), stores.objects()) == ({}, {})
    assert (stores.clone / WEIGHTS[0]).exists()


def test_a_run_killed_in_its_own_clone_is_settled_by_the_next_call(stores: Stores) -> None:
    """A dead process of this clone need not be waited for; the publication then goes through."""
    reached, go = hold_branches(stores)
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


def test_a_run_killed_in_mid_copy_leaves_no_half_object_after_recovery(stores: Stores) -> None:
    """Its half-written copy has another name than the object; it goes all the same."""
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


def test_a_living_run_is_left_alone_and_publishes(stores: Stores) -> None:
    """Its lease is young; another clone's recovery and publication pass it by."""
    other = stores.clone_again()
    write_run(other, seed=1)
    reached, go = hold_branches(stores)
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


def test_a_run_that_was_taken_for_dead_cannot_publish_any_more(stores: Stores) -> None:
    """It was slow, somebody settled it: its last push is refused whole, and it says so."""
    reached, go = hold_branches(stores)
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


def test_an_owner_does_not_take_over_the_living_who_undoes_it(
    stores: Stores, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that delete for one intent could each delete what a third has published since (`protocol_model.py`)."""
    monkeypatch.setattr(publish_module, "PATIENCE", 0.0)
    marks: list[lease_module.Lease] = []
    with vault_module.open_vault(stores.clone_again(), Credentials()) as vault:

        def mark() -> None:
            (seen,) = vault.refs.read_intents()
            assert seen.record is not None
            lease = lease_module.Lease(vault.refs, seen.ref, seen.record.marked(vault.me), seen.commit)
            marks.append(lease.__enter__())

        wire.before_commit[BRANCH] = mark
        with pytest.raises(GitPushError):
            publish(stores.clone)
        (lease,) = marks
        try:
            assert stores.refs() == {lease.ref: lease.commit}
        finally:
            lease.__exit__(None, None, None)


def test_undoing_deletes_nothing_after_somebody_took_it_over(stores: Stores, wire: Wire) -> None:
    """The mark is read again right before each object: who slept past it has lost it."""
    ref = leave_an_intent(stores, wire, stores.clone)
    before = identities(stores)
    other, third = stores.clone_again("other"), stores.clone_again("third")
    with vault_module.open_vault(other, Credentials()) as vault:
        (seen,) = vault.refs.read_intents()
        look = vault.objects.look

        def look_after_a_sleep(oids: Any) -> Any:
            if stores.refs()[ref] != taken:
                with vault_module.open_vault(third, Credentials()) as another:
                    (marked,) = another.refs.read_intents()
                    assert marked.record is not None
                    another.refs.push(
                        refs_module.RefUpdate(
                            ref, marked.commit, another.refs.write_intent(marked.record.marked(another.me))
                        )
                    )
                    vault.objects.look = look  # type: ignore[method-assign]
            return look(oids)

        taken = ""
        vault.objects.look = look_after_a_sleep  # type: ignore[method-assign]
        with pytest.raises(RunError):
            vault.settle(seen)
    assert identities(stores) == before


def test_undoing_what_has_been_published_meanwhile_is_no_error(stores: Stores, wire: Wire) -> None:
    """Who looked at an intent a moment too early finds it gone: the branch decides, and everything stays."""
    with vault_module.open_vault(stores.clone_again(), Credentials()) as vault:
        seen: list[Any] = []
        wire.before_commit[BRANCH] = lambda: seen.extend(vault.refs.read_intents())
        publish(stores.clone)
        assert vault.settle(seen[0]) is False
    assert_published(stores, stores.clone)


def test_an_intent_expires_by_the_clock_of_who_watches_it(stores: Stores, wire: Wire, clock: Clock) -> None:
    """The first look only notes it, however old it is; one that did not move for ten minutes is settled."""
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
    """A renewal begins the lease anew for whoever watches."""
    ref = leave_an_intent(stores, wire, stores.clone)
    other = stores.clone_again()
    assert recover(other, say=str) == 1
    clock.ahead += journal.LEASE - 1
    record = show_json(stores, ref)
    plant_intent(stores, json.dumps({**record, "nonce": "another"}), name=record["id"])
    clock.ahead += 2
    assert recover(other, say=str) == 1
    assert len(stores.objects()) == 2


def test_an_owner_renews_its_intent_while_it_uploads(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each renewal is another commit, so that others see it move; the last push still knows where it stands."""
    monkeypatch.setattr(journal, "RENEWAL", 0.02)
    seen: set[str] = set()
    copy = shutil.copyfile

    def copy_slowly(source: Path, target: Path) -> None:
        while len(seen) < 3:
            seen.update(stores.refs().values())
        copy(source, target)

    monkeypatch.setattr(publish_module, "SIDE_BY_SIDE", 1)
    monkeypatch.setattr(shutil, "copyfile", copy_slowly)
    publish(stores.clone)
    assert_published(stores, stores.clone)


def test_an_owner_that_slept_past_its_lease_stops_by_itself(
    stores: Stores, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may take it for dead: it publishes nothing, and cleans up."""
    copied: list[Path] = []
    copy = shutil.copyfile

    def copy_and_sleep(source: Path, target: Path) -> None:
        copied.append(copy(source, target))
        clock.ahead += journal.LEASE

    monkeypatch.setattr(publish_module, "SIDE_BY_SIDE", 1)
    monkeypatch.setattr(shutil, "copyfile", copy_and_sleep)
    with nothing_changes(stores), pytest.raises(SyncError, match="could not be renewed"):
        publish(stores.clone)
    assert copied


def test_a_termination_signal_undoes_a_publication(stores: Stores) -> None:
    """What a cloud sends before it takes a machine away."""
    reached, _ = hold_branches(stores)
    with nothing_changes(stores):
        with publishing_process(stores.clone) as process:
            wait_for(reached, process)
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate()
        assert process.returncode != 0
        assert "everything is undone" in errors


# ── others ────────────────────────────────────────────────────────────────────────────────────────────────────────────


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
def test_an_intent_of_another_version_is_left_alone_and_said(stores: Stores, text: str) -> None:
    """Its owner may be newer than this, and alive; it is in nobody's way."""
    ref = plant_intent(stores, text)
    commit = stores.refs()[ref]
    said: list[str] = []
    assert recover(stores.clone, older_than=0, say=said.append) == 1
    assert any(ref in line and "left alone" in line for line in said)
    publish(stores.clone)
    assert stores.refs().pop(ref) == commit
    assert_branches_are_whole(stores)


def test_a_failure_beside_an_intent_of_another_version_tells_what_is_left(stores: Stores) -> None:
    """It may name our objects: either they are deleted, or the error does not say that they are."""
    plant_intent(stores, '{"protocol": 99}')
    stores.write_hook("pre-receive", REFUSE_BRANCHES)
    with pytest.raises(GitPushError) as caught:
        publish(stores.clone)
    assert ("no new object" in str(caught.value)) == (stores.objects() == {})


def test_one_intent_that_cannot_be_settled_does_not_keep_the_others(stores: Stores, wire: Wire) -> None:
    """Every one is tried, then the first error is raised."""
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


def test_what_a_dead_run_left_is_not_taken_for_what_stood_there_before(stores: Stores, wire: Wire) -> None:
    """The dead one's objects are used by another run, which fails too: in the end nothing is left of either."""
    leave_an_intent(stores, wire, stores.clone)
    second, third = stores.clone_again("second"), stores.clone_again("third")
    write_run(second)
    wire.before_commit[OTHER] = lambda: recover(third, older_than=0, say=str)
    wire.fault = lambda words: "refused" if created_branch(words) == OTHER else ""
    with pytest.raises(GitPushError):
        publish(second, OTHER)
    assert recover(third, older_than=0, say=str) == 0
    assert (stores.refs(), stores.objects()) == ({}, {})


def test_a_run_keeps_what_it_shares_with_a_dead_one_that_is_settled_meanwhile(stores: Stores, wire: Wire) -> None:
    """The dead one's objects were found standing there; they stay for who is publishing them."""
    leave_an_intent(stores, wire, stores.clone)
    second, third = stores.clone_again("second"), stores.clone_again("third")
    write_run(second)
    wire.before_commit[OTHER] = lambda: recover(third, older_than=0, say=str)
    assert publish(second, OTHER).uploaded == 0
    assert_published(stores, second, OTHER)


@pytest.mark.parametrize("failing", ["the one that sent the objects", "the one that found them there"])
def test_of_two_runs_that_publish_the_same_content_at_once_one_may_fail(
    stores: Stores, wire: Wire, failing: str
) -> None:
    """The other's branch has all its objects, whoever of them sent them."""
    second = stores.clone_again()
    write_run(second)
    first_ready, second_ready, failed = threading.Event(), threading.Event(), threading.Event()
    loser = BRANCH if failing == "the one that sent the objects" else OTHER
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


def test_who_waits_for_a_dead_undoing_takes_it_over(
    stores: Stores, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run marked for undoing by a machine that died: the next run of the same content settles it, then publishes."""
    ref = leave_an_intent(stores, wire, stores.clone)
    record = show_json(stores, ref)
    gone = {"clone": "a machine that is gone", "process": "1-1"}
    plant_intent(stores, json.dumps({**record, "state": "aborting", "owner": gone}), name=record["id"])
    second = stores.clone_again()
    write_run(second)
    monkeypatch.setattr(journal, "LEASE", 2.0)
    monkeypatch.setattr(journal, "RENEWAL", 0.2)
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.2)))
    said: list[str] = []
    publish(second, OTHER, say=said.append)
    assert any("waiting" in line for line in said)
    assert_published(stores, second, OTHER)
    assert list(stores.refs()) == [f"refs/heads/{OTHER}"]


def test_a_folder_that_a_branch_names_keeps_its_files(stores: Stores, wire: Wire) -> None:
    """While a dead run waits for recovery, a user pushes a folder with the same file by DVC itself."""
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
    assert stores.object_path(md5(file)).exists()
    assert not stores.object_path(md5(stores.clone / WEIGHTS[1])).exists()


def test_what_is_uploaded_after_others_undid_the_run_is_removed_too(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken for dead in the middle of an upload: the owner cleans up what they could not see."""
    other = stores.clone_again()
    copy = shutil.copyfile
    copied: list[str] = []

    def slow(source: Path, target: Path) -> None:
        copy(source, target)
        copied.append(str(target))
        if len(copied) == 2:
            kept = Path(target).read_bytes()
            alive = set(lease_module.ALIVE)
            lease_module.ALIVE.clear()  # the other machine knows nothing of this process
            assert recover(other, older_than=0, say=str) == 0
            lease_module.ALIVE.update(alive)
            Path(target).write_bytes(kept)  # Drive has no temporary file that a recovery could take away

    monkeypatch.setattr(publish_module, "SIDE_BY_SIDE", 1)
    monkeypatch.setattr(shutil, "copyfile", slow)
    with nothing_changes(stores), pytest.raises(SyncError):
        publish(stores.clone)


def test_half_a_mirror_is_not_taken_for_a_whole_one(stores: Stores) -> None:
    """A kill while it is made leaves a folder that the next call makes anew."""
    refs = Refs(stores.clone, Credentials())
    run_git("init", "--quiet", "--bare", refs._mirror.with_suffix(".part"), cwd=stores.clone)
    publish(stores.clone)
    assert_published(stores, stores.clone)


def test_two_processes_of_one_clone_read_one_after_the_other(stores: Stores) -> None:
    """An older fetch of the one could take away from the mirror what the other has just seen there."""
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


def test_a_renewal_on_its_way_does_not_spoil_the_end_of_a_lease(
    stores: Stores, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ref is deleted from where the last renewal has left it."""
    ref = leave_an_intent(stores, wire, stores.clone)
    with vault_module.open_vault(stores.clone_again(), Credentials()) as vault:
        (seen,) = vault.refs.read_intents()
        assert seen.record is not None
        monkeypatch.setattr(journal, "RENEWAL", 0.01)
        with lease_module.Lease(vault.refs, seen.ref, seen.record.marked(vault.me), seen.commit) as lease:
            first = lease.commit
            while lease.commit == first:
                threading.Event().wait(0.01)
            lease.end()
    assert ref not in stores.refs()


def test_a_push_waits_for_another_one_that_holds_the_ref(stores: Stores) -> None:
    """Git refuses it at once; nothing had happened, and a moment later it is taken."""
    refs = Refs(stores.clone, Credentials())
    ref = "refs/heads/kaggle-train-x"
    lock = stores.origin / f"{ref}.lock"
    lock.touch()
    threading.Timer(0.5, lock.unlink).start()
    refs.push(RefUpdate(ref, None, refs.head()))
    assert stores.refs() == {ref: refs.head()}


def test_a_ref_that_stands_elsewhere_is_no_lock(stores: Stores) -> None:
    """Who comes second is told at once, in the host's words."""
    refs = Refs(stores.clone, Credentials())
    ref = "refs/heads/kaggle-train-x"
    refs.push(RefUpdate(ref, None, refs.head()))
    other = run_git("commit-tree", "HEAD^{tree}", "-m", "other", cwd=stores.clone)
    with pytest.raises(GitPushError) as caught:
        refs.push(RefUpdate(ref, None, other))
    assert not refs_module.BUSY.search(caught.value.what)
    told = subprocess.run(
        ["git", "update-ref", ref, refs.head(), "0" * 40], cwd=stores.origin, capture_output=True, text=True
    ).stderr
    assert "cannot lock ref" in told
    assert not refs_module.BUSY.search(told)
