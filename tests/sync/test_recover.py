"""Publications whose owner died, was slow, or met another one of the same content."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, RUN, WEIGHTS, Stores, is_alive, run_git, write_run
from publications import BRANCH, OTHER, STAMP, identities, md5_of, nothing_changes, objects_of, publish, refuse
from wire import Wire, assert_branches_are_complete, created_branch, leave_a_run, when

from lib.errors import GitPushError, RunError, TakenOverError
from lib.remotes.credentials import Credentials
from lib.sync import Published, Refs, recover
from lib.sync.refs import RefUpdate

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of DVC's own

HEAD = f"refs/heads/{BRANCH}"


@pytest.fixture(autouse=True)
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    """Return the boundary to the Git remote; repeated commands do not wait."""
    return Wire(monkeypatch)


CHILD = """
import os, sys, time
from datetime import datetime
from pathlib import Path
from lib.remotes.credentials import Credentials
from lib.sync import Publication, Refs, RunLock, sync_outputs
clone, branch, folder, stamp, reached, go, *objects = sys.argv[1:]
real = os.fsync
def pause(descriptor):
    if "/files/md5/" in os.readlink(f"/proc/self/fd/{{descriptor}}"):
        {in_each_copy}
    real(descriptor)
os.fsync = pause
hold = RunLock(Refs(Path(clone), Credentials()), branch, lease=1.0)
stamp = datetime.fromisoformat(stamp)
sync_outputs(Publication(Path(clone), branch, "Training of exp001\\n", folder, tuple(objects), stamp, hold=hold))
"""
WAIT = "Path(reached).touch()\n        while not Path(go).exists(): time.sleep(0.05)"


class Paused:
    """A process that publishes and is stopped at one moment, until `go` is called."""

    def __init__(self, stores: Stores, in_each_copy: str) -> None:
        self._reached, self._go = stores.folder / "reached", stores.folder / "go"
        places = (stores.clone, BRANCH, RUN, STAMP.isoformat(), self._reached, self._go)
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD.format(in_each_copy=in_each_copy), *map(str, places), *WEIGHTS],
            cwd=stores.clone, env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def wait(self) -> None:
        """Wait until it has reached that moment."""
        while not self._reached.exists():
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.02)

    def kill(self) -> None:
        """Kill it; a push that it has begun goes on."""
        self.process.kill()
        self.process.wait()

    def go(self) -> str:
        """Let it go on, wait for the end of it and of its push, and return what it reported."""
        pushing = int(self._reached.read_text() or 0)
        self._go.touch()
        shown = "".join(self.process.communicate()) if self.process.poll() is None else ""
        while pushing and is_alive(pushing):
            time.sleep(0.02)
        return shown


@contextmanager
def publishing_process(stores: Stores, *, at: str) -> Iterator[Paused]:
    """Publish in another process, which stops at its first `copy` or at its `commit` push."""
    if at == "commit":  # the Git remote stops the push, for a minute at most: a failing test leaves no process
        stores.write_hook(
            "pre-receive",
            f"""while read old new ref; do
  case "$ref" in refs/heads/*)
    echo $PPID > {stores.folder}/part; mv {stores.folder}/part {stores.folder}/reached
    for turn in $(seq 1200); do [ -e {stores.folder}/go ] && break; sleep 0.05; done;;
  esac
done""",
        )
    paused = Paused(stores, WAIT if at == "copy" else "pass")
    try:
        paused.wait()
        yield paused
    finally:
        paused.kill()


def assert_published(stores: Stores, clone: Path, branch: str = BRANCH) -> None:
    """Check that the branch has every object of the run."""
    assert f"refs/heads/{branch}" in stores.refs()
    assert_branches_are_complete(stores)
    assert objects_of(clone).items() <= stores.objects().items()


def another(stores: Stores, name: str = "other", *, seed: int = 0) -> Path:
    """Return another clone with a run in it; the same seed means the same content."""
    clone = stores.clone_again(name)
    write_run(clone, seed=seed)
    return clone


# ── dead and live owners ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_killed_during_its_commit_push_is_recovered_from_another_clone(stores: Stores) -> None:
    """SIGKILL arrives during the push; the push itself goes on alone, and is rejected."""
    with publishing_process(stores, at="commit") as owner:
        owner.kill()
        assert len(stores.runs()) == 1
        assert len(stores.objects()) == 2
        lines: list[str] = []
        assert recover(stores.clone_again(), say=lines.append) == 0
        assert lines[0] == f"Waiting for at most 1 s for an answer of {BRANCH} …"
        assert any(BRANCH in line for line in lines[1:])
        assert (stores.refs(), stores.objects()) == ({}, {})
        owner.go()
    assert (stores.refs(), stores.objects()) == ({}, {})
    assert (stores.clone / WEIGHTS[0]).exists()


@pytest.mark.parametrize("at", ["copy", "commit"])
def test_a_run_killed_in_its_own_clone_is_recovered_by_the_next_call(stores: Stores, at: str) -> None:
    """A dead process of this clone is recovered without waiting, also if it leaves an empty lock file of DVC."""
    with publishing_process(stores, at=at) as owner:
        owner.kill()
        (stores.clone / ".dvc/tmp/rwlock").write_text("")
        if at == "commit":
            stores.remove_hook("pre-receive")
        publish(stores.clone)
        assert_published(stores, stores.clone)
        owner.go()
    assert list(stores.refs()) == [HEAD]
    assert_published(stores, stores.clone)


def test_a_run_killed_during_a_copy_leaves_no_half_object_after_recovery(stores: Stores) -> None:
    """The half-written copy has another name than the object, and is deleted, too."""
    with publishing_process(stores, at="copy") as owner:
        owner.kill()
    assert len(stores.objects()) == 1
    assert recover(stores.clone_again(), say=str) == 0
    assert (stores.refs(), stores.objects()) == ({}, {})


def test_a_live_run_is_left_alone_and_publishes(stores: Stores) -> None:
    """It answers: another clone's recovery and publication do not change it."""
    other = another(stores, seed=1)
    with publishing_process(stores, at="copy") as owner:
        assert recover(other, say=str) == 1
        publish(other, OTHER)
        assert len(stores.runs()) == 1
        assert "Traceback" not in owner.go()
    assert_published(stores, stores.clone)
    assert_published(stores, other, OTHER)
    assert stores.runs() == []


def test_a_run_that_was_rolled_back_while_alive_is_fenced(stores: Stores) -> None:
    """It did not answer within its lease: its commit push is rejected as a whole, with an error."""
    with publishing_process(stores, at="commit") as owner:
        assert recover(stores.clone_again(), say=str) == 0
        shown = owner.go()
    assert "TakenOverError" in shown
    assert (stores.refs(), stores.objects()) == ({}, {})
    assert (stores.clone / WEIGHTS[0]).exists()


def test_a_termination_signal_rolls_a_publication_back(stores: Stores) -> None:
    """A cloud sends SIGTERM before it stops a machine."""
    with nothing_changes(stores), publishing_process(stores, at="commit") as owner:
        owner.process.send_signal(signal.SIGTERM)
        _, errors = owner.process.communicate()
        assert owner.process.returncode != 0
        assert "everything is rolled back" in errors
        stores.remove_hook("pre-receive")


def test_a_rollback_that_was_taken_over_deletes_nothing(
    stores: Stores, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run's ref is read again right before each deletion: a process that slept past its lease finds it moved."""
    leave_a_run(wire, stores.clone, BRANCH)
    before, look = identities(stores), Refs.named_objects

    def look_and_sleep(refs: Refs, *patterns: str) -> set[str]:
        (run,) = refs.read_runs().values()
        assert run.record is not None
        other = refs.write_record(run.record.but(session="another"))
        refs.push(RefUpdate(f"refs/runs/{run.name}", run.commit, other))
        return look(refs, *patterns)

    monkeypatch.setattr(Refs, "named_objects", look_and_sleep)
    with pytest.raises(TakenOverError):
        recover(stores.clone, patience=0, say=str)
    assert identities(stores) == before


def test_refs_of_other_versions_are_left_alone_and_reported(stores: Stores) -> None:
    """Their owner may be alive; they do not stop this publication."""
    tree = run_git("mktree", cwd=stores.origin)
    theirs = run_git("commit-tree", tree, "-m", "another version", cwd=stores.origin)
    refs = ["refs/heads/kaggle-intents/y", "refs/intents/x", "refs/runs/z"]
    for ref in refs:
        run_git("update-ref", ref, theirs, cwd=stores.origin)
    lines: list[str] = []
    assert recover(stores.clone, patience=0, say=lines.append) == 1
    assert all(any(ref in line and "left alone" in line for line in lines) for ref in refs)
    publish(stores.clone)
    assert sorted(stores.refs()) == sorted([*refs, HEAD])
    refuse(stores, "refs/heads/kaggle-train-*")
    write_run(stores.clone, seed=1)
    with nothing_changes(stores), pytest.raises(GitPushError, match="no new object"):
        publish(stores.clone, OTHER)


def test_one_run_that_cannot_be_recovered_does_not_stop_the_others(stores: Stores, wire: Wire) -> None:
    """Every run is tried, then the first error is raised."""
    first = leave_a_run(wire, stores.clone, "kaggle-train-a")
    write_run(stores.clone, seed=1)
    leave_a_run(wire, stores.clone, "kaggle-train-b")
    wire.fault = when(lambda words: words[1] == "push" and any(first in word for word in words), "refused")
    with pytest.raises(GitPushError):
        recover(stores.clone, say=str)
    assert stores.runs() == [first]
    assert len(stores.objects()) == 2
    wire.heal()
    assert recover(stores.clone, patience=0, say=str) == 0
    assert (stores.refs(), stores.objects()) == ({}, {})


# ── other publications ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fails", [False, True])
def test_a_publication_of_the_same_content_recovers_a_dead_one(stores: Stores, wire: Wire, fails: bool) -> None:
    """What the dead one has stored does not count as stored before: in the end nothing is left of it."""
    leave_a_run(wire, stores.clone, BRANCH)
    second, lines = another(stores), list[str]()
    wire.fault = when(created_branch, "refused" if fails else "")
    try:
        assert publish(second, OTHER, say=lines.append).uploaded == 10_000
    except GitPushError:
        assert fails
    assert any("waiting" in line for line in lines)
    if fails:
        assert (stores.refs(), stores.objects()) == ({}, {})
    else:
        assert list(stores.refs()) == [f"refs/heads/{OTHER}"]
        assert_published(stores, second, OTHER)


@pytest.mark.parametrize("failing", [BRANCH, OTHER, ""], ids=["the first", "the second", "none"])
def test_of_two_runs_that_publish_the_same_content_at_once_one_may_fail(
    stores: Stores, wire: Wire, failing: str
) -> None:
    """The second waits for the first, which has stored the objects: then it relies on them, or stores its own."""
    second, waiting, outcomes = another(stores), threading.Event(), dict[str, object]()

    def run(clone: Path, branch: str, say: Any = str) -> None:
        try:
            outcomes[branch] = publish(clone, branch, say=say)
        except RunError as error:
            outcomes[branch] = error

    thread = threading.Thread(
        target=run, args=(second, OTHER, lambda line: waiting.set() if "waiting" in line else None)
    )

    def start_the_second() -> None:
        thread.start()
        assert waiting.wait(30)

    wire.before_commit = {BRANCH: start_the_second}
    wire.fault = lambda words: "refused" if failing and created_branch(words) == failing else ""
    run(stores.clone, BRANCH)
    thread.join()
    published = {branch for branch in (BRANCH, OTHER) if branch != failing}
    assert all(isinstance(outcomes[branch], Published) for branch in published)
    assert not failing or isinstance(outcomes[failing], GitPushError)
    assert set(stores.refs()) == {f"refs/heads/{branch}" for branch in published}
    assert stores.objects() == objects_of(second)


@pytest.mark.parametrize("readable", [True, False])
def test_a_folder_that_a_branch_names_keeps_its_files(stores: Stores, wire: Wire, readable: bool) -> None:
    """While a dead run is not recovered yet, a user pushes a folder with the same file, with DVC itself.

    A listing that cannot be read may name anything: all copies stay, its file is reported, and the run is recovered.
    """
    from dvc.repo import Repo

    leave_a_run(wire, stores.clone, BRANCH)
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
    if not readable:
        (listing,) = stores.storage.rglob("*.dir")
        listing.chmod(0o644)
        listing.write_text("no JSON")
    lines: list[str] = []
    assert recover(stores.clone, patience=0, say=lines.append) == 0
    assert stores.runs() == []
    there = [stores.object_path(md5_of((stores.clone / name).read_bytes())).exists() for name in WEIGHTS]
    assert there == [True, not readable]
    assert readable or any("models.dvc" in line for line in lines)
    assert publish(stores.clone).uploaded == (5_000 if readable else 0)


# ── the mirror ────────────────────────────────────────────────────────────────────────────────────────────────────────


def leave_locks(mirror: Path) -> None:
    """Leave the locks of a killed process."""
    head = next((mirror / "refs").rglob("main"))
    for name in ("packed-refs.lock", "shallow.lock", "config.lock", f"{head.relative_to(mirror)}.lock"):
        (mirror / name).touch()


def cut_objects(mirror: Path, size: int = 9) -> None:
    """Leave objects that were not written to the end, or not at all."""
    for path in [path for path in (mirror / "objects").rglob("*") if path.is_file()]:
        path.chmod(0o644)
        os.truncate(path, size)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "locks": leave_locks,
    "no HEAD": lambda mirror: (mirror / "HEAD").write_text(""),
    "no objects": lambda mirror: shutil.rmtree(mirror / "objects"),
    "objects empty": lambda mirror: cut_objects(mirror, 0),
    "objects cut": cut_objects,
    "half made": lambda mirror: mirror.rename(mirror.with_suffix(".part")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_mirror_is_made_anew_and_the_clone_stays_as_it_is(stores: Stores, wire: Wire, damage: str) -> None:
    """Git must not take the user's own repository for it, which is around it: a fetch deletes branches."""
    leave_a_run(wire, stores.clone, BRANCH)
    run_git("branch", "mine", cwd=stores.clone)
    refs = Refs(stores.clone, Credentials())
    refs.read_files("refs/heads/main", "*")
    DAMAGES[damage](refs._mirror)
    before = run_git("for-each-ref", cwd=stores.clone)
    assert recover(stores.clone, patience=0, say=str) == 0
    assert run_git("for-each-ref", cwd=stores.clone) == before
    assert (stores.refs(), stores.objects()) == ({}, {})


def test_two_processes_of_one_clone_read_one_after_the_other(stores: Stores, wire: Wire) -> None:
    """An older fetch of one process could remove refs from the mirror that the other has just read."""
    ref = leave_a_run(wire, stores.clone, BRANCH)
    first, second = Refs(stores.clone, Credentials()), Refs(stores.clone, Credentials())
    seen: list[str] = []
    thread = threading.Thread(target=lambda: seen.extend(second.read_runs()))
    with first._fetched("refs/runs/*"):
        thread.start()
        thread.join(1)
        assert thread.is_alive()
        assert seen == []
    thread.join(60)
    assert [f"refs/runs/{name}" for name in seen] == [ref]
