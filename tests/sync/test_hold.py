"""One session at a time trains an experiment; a dead session is taken over, and its pushes are rejected."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Stores, run_git, write_run
from publications import CHECKPOINT, accept_only
from publications import publish as publish_run

from lib.errors import GitPushError, RunHeldError
from lib.remotes.credentials import Credentials
from lib.sync import Published, RunLock, recover
from lib.sync import intent as journal
from lib.sync.refs import Refs

NAME = "detection-exp001"
REF = f"refs/runs/{NAME}"

LEASE = 1.5  # seconds

Hold = Callable[..., RunLock]


@pytest.fixture
def hold() -> Iterator[Hold]:
    """Yield a function that creates locks of the run; they are released after the test."""
    made: list[RunLock] = []

    def make(clone: Path, *, lease: float = LEASE, say: Any = str, **more: Any) -> RunLock:
        made.append(RunLock(clone, NAME, Credentials(), lease=lease, say=say, **more))
        return made[-1]

    yield make
    for each in made:
        each.release()


def publish(clone: Path, held: RunLock, *, seed: int = 0) -> Published:
    """Publish the next checkpoint of the run."""
    write_run(clone, seed=seed)
    return publish_run(clone, CHECKPOINT, CHECKPOINT, hold=held)


def stop_renewing(held: RunLock) -> None:
    """Stop the renewals of a session, as if it was suspended or had lost its network."""
    assert held._lease is not None
    held._lease.join()


def test_a_run_is_held_from_start_to_end(stores: Stores, hold: Hold) -> None:
    """Its ref is on the Git remote meanwhile, and moves with each renewal."""
    held = hold(stores.clone)
    assert held.watch()
    held.take()  # returns at once: it is held already
    first = stores.refs()[REF]
    end = time.monotonic() + 30
    while stores.refs()[REF] == first:
        assert time.monotonic() < end
        time.sleep(0.05)
    held.release()
    assert stores.refs() == {}
    held.release()


def test_a_second_session_sees_that_the_first_is_alive_and_stops(stores: Stores, hold: Hold) -> None:
    """The error names the remedy; the first session continues."""
    first, second = hold(stores.clone), hold(stores.clone_again())
    assert first.watch()
    assert not second.watch()
    with pytest.raises(RunHeldError, match="is alive") as caught:
        second.take()
    assert "wait for it to end" in caught.value.remedy
    publish(stores.clone, first)


def test_of_sessions_that_start_together_one_holds_the_run(stores: Stores, hold: Hold) -> None:
    """Whatever Git says about the push that lost, its session does not take it for a refusal by the host."""
    clones = [stores.clone, stores.clone_again("second"), stores.clone_again("third")]
    for _ in range(3):
        sessions = [hold(clone, lease=30.0) for clone in clones]
        with ThreadPoolExecutor(len(sessions)) as pool:
            held = list(pool.map(RunLock.watch, sessions))
        assert sum(held) == 1
        assert list(stores.refs()) == [REF]
        for session in sessions:
            session.release()


def test_a_dead_session_is_taken_over(stores: Stores, hold: Hold) -> None:
    """This happens when its lease has expired by the observer's own clock, and not before."""
    first, lines = hold(stores.clone), list[str]()
    assert first.watch()
    stop_renewing(first)
    second = hold(stores.clone_again(), say=lines.append)
    begun = time.monotonic()
    assert not second.watch()
    second.take()
    assert time.monotonic() - begun >= LEASE
    assert any("waiting for it to renew" in line for line in lines)
    assert any("is dead, and this one takes over" in line for line in lines)


def test_the_time_of_watching_counts(stores: Stores, hold: Hold) -> None:
    """The first session's lease expires while the second one clones, installs and pulls: no further wait is needed."""
    first, lines = hold(stores.clone), list[str]()
    assert first.watch()
    stop_renewing(first)
    second = hold(stores.clone_again(), say=lines.append)
    assert not second.watch()
    time.sleep(LEASE + 0.5)
    second.take()
    assert not any("waiting" in line for line in lines)


@pytest.mark.parametrize("moves", [False, True])
def test_the_time_before_there_is_a_clone_counts(stores: Stores, hold: Hold, moves: bool) -> None:
    """The first session's lease expires while the second one clones; each move of its ref starts the lease again."""
    first, lines = hold(stores.clone), list[str]()
    assert first.watch()
    noted = run_git("ls-remote", stores.origin, "refs/runs/*", cwd=stores.folder), time.monotonic() - 2 * LEASE
    if moves:
        publish(stores.clone, first)
    stop_renewing(first)
    second = hold(stores.clone_again(), say=lines.append, noted=noted)
    assert second.watch() is not moves
    assert any("takes over" in line for line in lines) is not moves


def test_a_session_that_was_taken_over_is_fenced(stores: Stores, hold: Hold) -> None:
    """Its commit push is rejected as a whole and rolled back; the other session's checkpoint stays."""
    first, other = hold(stores.clone), stores.clone_again()
    assert first.watch()
    publish(stores.clone, first, seed=1)
    stop_renewing(first)
    second = hold(other)
    second.watch()
    second.take()
    refs, objects = stores.refs(), stores.objects()
    assert first._lease is not None
    first._lease._renewed = time.monotonic()  # it has woken up and believes that its lease is valid
    with pytest.raises(GitPushError) as caught:
        publish(stores.clone, first, seed=2)
    assert "another session has taken over detection-exp001" in caught.value.remedy
    assert stores.refs()[f"refs/heads/{CHECKPOINT}"] == refs[f"refs/heads/{CHECKPOINT}"]
    assert stores.intents() == []
    assert stores.objects() == objects
    published = publish(other, second, seed=3)
    assert stores.refs()[f"refs/heads/{CHECKPOINT}"] == published.commit


def test_without_the_run_in_the_push_a_stale_session_would_overwrite_its_successor(
    stores: Stores, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the rule of the test above switched off, the damage happens."""
    first, other = hold(stores.clone), stores.clone_again()
    assert first.watch()
    stop_renewing(first)
    second = hold(other)
    second.take()
    published = publish(other, second, seed=1)
    monkeypatch.setattr(RunLock, "renewal", lambda *_: contextlib.nullcontext())
    publish(stores.clone, first, seed=2)
    assert stores.refs()[f"refs/heads/{CHECKPOINT}"] != published.commit


def test_a_session_that_could_not_renew_stops_publishing_by_itself(stores: Stores, hold: Hold) -> None:
    """Others may have taken it over; its own clock is enough to know that."""
    held = hold(stores.clone)
    assert held.watch()
    stop_renewing(held)
    time.sleep(LEASE)
    with pytest.raises(GitPushError, match="could not be renewed"):
        publish(stores.clone, held)
    assert stores.objects() == {}


KILLED = """
import sys, time
from pathlib import Path
from lib.remotes.credentials import Credentials
from lib.sync import RunLock
assert RunLock(Path(sys.argv[1]), "detection-exp001", Credentials(), lease=600.0).watch()
print("held", flush=True)
time.sleep(600)
"""


def test_a_kernel_that_was_restarted_in_the_same_clone_resumes_at_once(stores: Stores, hold: Hold) -> None:
    """The earlier process has ended, which is known without waiting for its lease."""
    words = [sys.executable, "-c", KILLED, str(stores.clone)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert not hold(stores.clone).watch()
        os.kill(process.pid, signal.SIGKILL)
    assert hold(stores.clone).watch()


def test_a_publication_after_the_release_takes_the_run_again(stores: Stores, hold: Hold) -> None:
    """A user publishes by hand, after an error has ended the run and its cause is fixed."""
    held = hold(stores.clone)
    assert held.watch()
    held.release()
    publish(stores.clone, held)
    assert REF in stores.refs()


def test_a_branch_holds_the_run_if_the_host_accepts_only_branches(stores: Stores, hold: Hold) -> None:
    """Other sessions find the branch too."""
    accept_only(stores, "refs/heads/*")
    first, second = hold(stores.clone), hold(stores.clone_again())
    assert first.watch()
    assert list(stores.refs()) == [f"refs/heads/kaggle-runs/{NAME}"]
    assert not second.watch()
    publish(stores.clone, first)
    first.release()
    assert second.watch()


def test_of_two_simultaneous_sessions_one_holds_the_run(
    stores: Stores, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have seen it free: the push is a compare-and-swap, and the later session begins to watch."""
    first, second = hold(stores.clone), hold(stores.clone_again())
    read, too_early = second._run_refs, [dict[str, str]()]
    monkeypatch.setattr(second, "_run_refs", lambda: too_early.pop() if too_early else read())
    assert first.watch()
    assert not second._try()
    with pytest.raises(RunHeldError):
        second.take()


def test_a_remote_that_does_not_answer_is_an_error(stores: Stores, hold: Hold) -> None:
    """It is not mistaken for another session's hold."""
    held = hold(stores.clone)
    stores.write_hook("pre-receive", "exit 1")
    with pytest.raises(GitPushError):
        held.watch()


@pytest.mark.parametrize("happens", [True, False])
def test_a_session_keeps_its_hold_when_the_answer_to_a_commit_push_is_lost(
    stores: Stores, hold: Hold, monkeypatch: pytest.MonkeyPatch, happens: bool
) -> None:
    """The next push knows the commit of the run's ref, whether the lost push has happened or not."""
    held = hold(stores.clone, lease=600.0)
    assert held.watch()
    push, lost = Refs.push, list[bool]()

    def lose(refs: Refs, *updates: Any) -> None:
        if len(updates) > 2 and not lost:
            lost.append(True)
            if happens:
                push(refs, *updates)
            raise GitPushError("the answer was lost")
        push(refs, *updates)

    monkeypatch.setattr(Refs, "push", lose)
    if happens:
        publish(stores.clone, held, seed=1)
    else:
        with pytest.raises(GitPushError):
            publish(stores.clone, held, seed=1)
    published = publish(stores.clone, held, seed=2)
    assert stores.refs()[f"refs/heads/{CHECKPOINT}"] == published.commit
    assert stores.intents() == []


def test_a_hold_of_another_version_is_respected_for_the_usual_lease(
    stores: Stores, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record cannot be read, but its moves can be seen."""
    monkeypatch.setattr(journal, "LEASE", LEASE)
    run_git("push", "--quiet", "origin", f"HEAD:{REF}", cwd=stores.clone)
    held = hold(stores.clone_again())
    assert not held.watch()
    held.take()


def test_recovery_leaves_a_held_run_alone(stores: Stores, hold: Hold) -> None:
    """The ref of a run is not an intent: recovery does not touch it."""
    held = hold(stores.clone)
    assert held.watch()
    assert recover(stores.clone_again(), older_than=0, say=str) == 0
    assert REF in stores.refs()


def test_no_thread_of_a_hold_survives_it(stores: Stores, hold: Hold) -> None:
    """Both the renewing and the watching thread end."""
    first, second = hold(stores.clone), hold(stores.clone_again())
    first.watch()
    second.watch()
    first.release()
    second.take()
    second.release()
    assert not [thread.name for thread in threading.enumerate() if NAME in thread.name]
