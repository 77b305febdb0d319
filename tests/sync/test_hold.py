"""One session at a time trains an experiment; who died is taken over from, and publishes nothing any more."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, RUN, WEIGHTS, Stores, run_git, write_run

from lib.errors import GitPushError, RunHeldError
from lib.remotes.credentials import Credentials
from lib.sync import Publication, Published, RunLock, recover, sync_outputs
from lib.sync import intent as journal
from lib.sync.refs import Refs

NAME = "detection-exp001"
REF = f"refs/runs/{NAME}"
CHECKPOINT = f"kaggle-checkpoint-{NAME}"
LEASE = 1.5  # seconds

Hold = Callable[..., RunLock]


@pytest.fixture
def hold() -> Iterator[Hold]:
    """Make holds on the run, and let them go after the test."""
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
    stamp = datetime(2025, 1, 2, 3, 4, seed, tzinfo=UTC)
    run = Publication(clone, CHECKPOINT, "a run", RUN, WEIGHTS, stamp, supersedes=(CHECKPOINT,), hold=held)
    return sync_outputs(run, say=str)


def sleep_through(held: RunLock) -> None:
    """Let a session give no sign of life from now on, as one that was suspended or lost its network."""
    assert held._lease is not None
    held._lease.join()


def test_a_run_is_held_from_start_to_end(stores: Stores, hold: Hold) -> None:
    """Its ref stands on the Git remote meanwhile, and moves as a sign of life."""
    held = hold(stores.clone)
    assert held.watch()
    held.take()  # it is ours already
    first = stores.refs()[REF]
    end = time.monotonic() + 30
    while stores.refs()[REF] == first:
        assert time.monotonic() < end
        time.sleep(0.05)
    held.release()
    assert stores.refs() == {}
    held.release()


def test_a_second_session_sees_that_the_first_is_alive_and_stops(stores: Stores, hold: Hold) -> None:
    """It says so and what to do; the first goes on."""
    first, second = hold(stores.clone), hold(stores.clone_again())
    assert first.watch()
    assert not second.watch()
    with pytest.raises(RunHeldError, match="is alive") as caught:
        second.take()
    assert "wait for it to end" in caught.value.remedy
    publish(stores.clone, first)


def test_a_session_that_died_is_taken_over_from(stores: Stores, hold: Hold) -> None:
    """After its lease, on the observer's own clock, and not before."""
    first, said = hold(stores.clone), list[str]()
    assert first.watch()
    sleep_through(first)
    second = hold(stores.clone_again(), say=said.append)
    begun = time.monotonic()
    assert not second.watch()
    second.take()
    assert time.monotonic() - begun >= LEASE
    assert any("waiting for a sign of life" in line for line in said)
    assert any("is dead, and this one takes over" in line for line in said)


def test_the_time_of_watching_counts(stores: Stores, hold: Hold) -> None:
    """While the second session clones, installs and pulls, the first one's lease runs out: it need not wait then."""
    first, said = hold(stores.clone), list[str]()
    assert first.watch()
    sleep_through(first)
    second = hold(stores.clone_again(), say=said.append)
    assert not second.watch()
    time.sleep(LEASE + 0.5)
    second.take()
    assert not any("waiting" in line for line in said)


@pytest.mark.parametrize("moves", [False, True])
def test_the_time_before_there_is_a_clone_counts(stores: Stores, hold: Hold, moves: bool) -> None:
    """While the second session clones and installs, the first one's lease runs out; if it moves, it begins anew."""
    first, said = hold(stores.clone), list[str]()
    assert first.watch()
    noted = run_git("ls-remote", stores.origin, "refs/runs/*", cwd=stores.folder), time.monotonic() - 2 * LEASE
    if moves:
        publish(stores.clone, first)
    sleep_through(first)
    second = hold(stores.clone_again(), say=said.append, noted=noted)
    assert second.watch() is not moves
    assert any("takes over" in line for line in said) is not moves


def test_who_was_taken_over_from_publishes_nothing_any_more(stores: Stores, hold: Hold) -> None:
    """Its commit push is refused whole and undone; what the other has published stands."""
    first, other = hold(stores.clone), stores.clone_again()
    assert first.watch()
    publish(stores.clone, first, seed=1)
    sleep_through(first)
    second = hold(other)
    second.watch()
    second.take()
    standing = stores.refs(), stores.objects()
    assert first._lease is not None
    first._lease._renewed = time.monotonic()  # it woke up and does not know yet
    with pytest.raises(GitPushError) as caught:
        publish(stores.clone, first, seed=2)
    assert "another session has taken detection-exp001 over" in caught.value.remedy
    assert stores.refs()[f"refs/heads/{CHECKPOINT}"] == standing[0][f"refs/heads/{CHECKPOINT}"]
    assert stores.intents() == []
    assert stores.objects() == standing[1]
    published = publish(other, second, seed=3)
    assert stores.refs()[f"refs/heads/{CHECKPOINT}"] == published.commit


def test_without_the_run_in_the_push_a_sleeper_would_overwrite_what_took_its_place(
    stores: Stores, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rule of the test above switched off: the damage is seen."""
    first, other = hold(stores.clone), stores.clone_again()
    assert first.watch()
    sleep_through(first)
    second = hold(other)
    second.take()
    standing = publish(other, second, seed=1)
    monkeypatch.setattr(RunLock, "moved_along", lambda *_: contextlib.nullcontext())
    publish(stores.clone, first, seed=2)
    assert stores.refs()[f"refs/heads/{CHECKPOINT}"] != standing.commit


def test_who_could_not_renew_stops_publishing_by_itself(stores: Stores, hold: Hold) -> None:
    """Others may have taken it for dead; it asks nobody to find that out."""
    held = hold(stores.clone)
    assert held.watch()
    sleep_through(held)
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


def test_a_kernel_that_was_restarted_in_the_same_clone_goes_on_at_once(stores: Stores, hold: Hold) -> None:
    """Its process has ended: nobody needs to wait for a lease to know it."""
    words = [sys.executable, "-c", KILLED, str(stores.clone)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert not hold(stores.clone).watch()
        os.kill(process.pid, signal.SIGKILL)
    assert hold(stores.clone).watch()


def test_a_publication_that_is_called_again_after_the_end_takes_the_run_again(stores: Stores, hold: Hold) -> None:
    """By hand, after an error had ended the run and its cause was mended."""
    held = hold(stores.clone)
    assert held.watch()
    held.release()
    publish(stores.clone, held)
    assert REF in stores.refs()


def test_where_a_host_takes_branches_alone_a_branch_holds_the_run(stores: Stores, hold: Hold) -> None:
    """And others look there too."""
    stores.write_hook(
        "pre-receive", 'while read old new ref; do case "$ref" in refs/heads/*) ;; *) exit 1;; esac; done'
    )
    first, second = hold(stores.clone), hold(stores.clone_again())
    assert first.watch()
    assert list(stores.refs()) == [f"refs/heads/kaggle-runs/{NAME}"]
    assert not second.watch()
    publish(stores.clone, first)
    first.release()
    assert second.watch()


def test_of_two_that_come_at_once_one_holds_the_run(
    stores: Stores, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both saw it free: the push is a compare-and-swap, and who comes second begins to watch."""
    first, second = hold(stores.clone), hold(stores.clone_again())
    with monkeypatch.context() as patch:
        patch.setattr(second, "_standing", dict)
        assert first.watch()
        assert not second._try()
    with pytest.raises(RunHeldError):
        second.take()


def test_a_remote_that_does_not_answer_is_an_error(stores: Stores, hold: Hold) -> None:
    """Not taken for somebody else's hold."""
    held = hold(stores.clone)
    stores.write_hook("pre-receive", "exit 1")
    with pytest.raises(GitPushError):
        held.watch()


@pytest.mark.parametrize("happens", [True, False])
def test_an_answer_that_is_lost_costs_the_hold_nothing(
    stores: Stores, hold: Hold, monkeypatch: pytest.MonkeyPatch, happens: bool
) -> None:
    """Whether the commit push had moved the run's ref along or not: the next one knows where it stands."""
    held = hold(stores.clone, lease=600.0)
    assert held.watch()
    push, lost = Refs.push, list[bool]()

    def lose(refs: Refs, *moves: Any) -> None:
        if len(moves) > 2 and not lost:
            lost.append(True)
            if happens:
                push(refs, *moves)
            raise GitPushError("the answer was lost")
        push(refs, *moves)

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
    """Its record cannot be read; that it moves or not can be seen all the same."""
    monkeypatch.setattr(journal, "LEASE", LEASE)
    run_git("push", "--quiet", "origin", f"HEAD:{REF}", cwd=stores.clone)
    held = hold(stores.clone_again())
    assert not held.watch()
    held.take()


def test_recovery_and_its_intents_leave_a_run_alone(stores: Stores, hold: Hold) -> None:
    """A run is no publication: nothing settles it."""
    held = hold(stores.clone)
    assert held.watch()
    assert recover(stores.clone_again(), older_than=0, say=str) == 0
    assert REF in stores.refs()


def test_no_thread_of_a_hold_survives_it(stores: Stores, hold: Hold) -> None:
    """Neither that which renews nor that which watches."""
    first, second = hold(stores.clone), hold(stores.clone_again())
    first.watch()
    second.watch()
    first.release()
    second.take()
    second.release()
    assert not [thread.name for thread in threading.enumerate() if NAME in thread.name]
