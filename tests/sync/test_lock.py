"""One session at a time holds a run: who gets it, who is taken for dead, and what a session that lost it can still do.

Sessions of other machines are other clones; a dead or suspended one is a real process that gets SIGKILL or SIGSTOP,
or a lock whose answers are stopped.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import dummy
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import pytest
from conftest import WEIGHTS, Stores, eventually, run_git, write_run
from git_host_emulator import GitHost, Kind
from publications import (
    BRANCH,
    CHECKPOINT,
    checkpoints,
    md5_of,
    models_of,
    objects_of,
    publication,
    publish,
    publish_checkpoint,
)

from lib.errors import GitPushError, RunHeldError, TakenOverError
from lib.process import Completed, run_command
from lib.remotes import repository as repository_module
from lib.remotes.credentials import Credentials
from lib.sync import Refs, RunLock, open_remotes, read_run, recover, rehearse
from lib.sync import lock as lock_module
from lib.sync import refs as refs_module
from lib.sync.record import DeclaredCopy, RunRecord
from lib.sync.recover import Recovery
from lib.sync.refs import ANY, RefUpdate, SeenRun

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of DVC's own

NAME = "detection-exp001"
REF, ASK, HEAD = f"refs/runs/{NAME}", f"refs/asks/{NAME}", f"refs/heads/{CHECKPOINT}"
PUBLISHED = f"refs/heads/{BRANCH}"
LEASE = 1.0  # seconds, of sessions that never answer
LONG = 20.0  # seconds, of sessions that answer, on however slow a machine
LONG_NAME = "detection/Prüfung-漢字-" + "ü" * 137
Make = Callable[..., RunLock]
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def lock() -> Iterator[Make]:
    """Yield a function that creates locks, not taken yet; they are released after the test."""
    made: list[RunLock] = []

    def make(clone: Path, name: str = NAME, *, lease: float = LONG, say: Callable[[str], object] = str) -> RunLock:
        made.append(RunLock(Refs(clone, Credentials()), name, lease=lease, say=say))
        return made[-1]

    yield make
    for each in made:
        each.release()


@pytest.fixture(autouse=True)
def _quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let holders look for questions often: they answer long before their lease ends."""
    monkeypatch.setattr(lock_module, "POLL", 0.1)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeat a push that is meant to fail only twice, without long pauses."""
    monkeypatch.setattr(repository_module, "PAUSES", (0.01, 0.02))


def hang(held: RunLock) -> None:
    """Stop the answers of a session, as if its machine was suspended or had lost its network."""
    held._ended.set()


def dead(lock: Make, clone: Path, name: str = NAME, *, lease: float = LEASE) -> RunLock:
    """Return the lock of a session that has taken the run and does not answer any more."""
    held = lock(clone, name, lease=lease)
    held.take()
    hang(held)
    return held


def record_of(stores: Stores, ref: str = REF) -> RunRecord:
    """Return the record in a run's ref."""
    record = read_run(run_git("show", f"{ref}:run.json", cwd=stores.origin))
    assert record is not None
    return record


def move_to(stores: Stores, commit: str, ref: str = REF) -> None:
    """Move a ref of the Git remote by hand."""
    run_git("update-ref", ref, commit, cwd=stores.origin)


@contextmanager
def child(session: Callable[[Connection], object]) -> Iterator[tuple[ForkProcess, Connection]]:
    """Run a session in a process of its own, which is killed at the end, and yield it with a pipe to it."""
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=session, args=(theirs,))
    process.start()
    theirs.close()
    try:
        yield process, ours
    finally:
        process.kill()
        process.join()


def is_stopped(process: ForkProcess) -> bool:
    """Return whether SIGSTOP has stopped the process."""
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def stop_here() -> None:
    """Stop this process until it gets SIGCONT."""
    os.kill(os.getpid(), signal.SIGSTOP)


def after_reading(patch: pytest.MonkeyPatch, *actions: Callable[[], object]) -> None:
    """Do one of the actions after each reading of the Git remote's refs: what was read is outdated by then."""
    read, left = Refs.list_refs, list(actions)

    def read_then_act(refs: Refs, *patterns: str) -> dict[str, str]:
        found = read(refs, *patterns)
        if left:
            left.pop(0)()
        return found

    patch.setattr(Refs, "list_refs", read_then_act)


def store_declared(clone: Path, held: RunLock, *, seed: int = 0) -> None:
    """Declare the weights of a run and store them, like a publication that dies before its commit push."""
    write_run(clone, seed=seed)
    assert held.record is not None
    with open_remotes(clone, Credentials()) as remotes:
        remotes.claim(held.record.repository)
        store, models = remotes.store, models_of(clone)
        copies = {
            name: DeclaredCopy(
                oid=md5_of(models[name]), size=len(models[name]), identity=identity, store=store.address()
            )
            for name, identity in zip(models, store.new_identities(len(models)), strict=True)
        }
        held.push(held.record.but(publishing=tuple(copies.values())))
        for name, copy in copies.items():
            assert store.create(store.path_of(copy.oid), clone / name, copy.identity)


# ── taking and releasing ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_is_held_from_take_to_release(stores: Stores, lock: Make) -> None:
    """Its ref names the session; a lock that was released can be taken again, as another session."""
    held = lock(stores.clone)
    assert held.try_take()
    held.take()  # returns at once: it is held already
    assert list(stores.refs()) == [REF]
    first = record_of(stores)
    assert (first.protocol, first.name, first.lease, first.declared) == (2, NAME, LONG, ())
    held.release()
    assert stores.refs() == {}
    held.release()
    held.take()
    assert record_of(stores).session != first.session
    assert record_of(stores).repository == first.repository


def test_a_released_run_can_be_taken_although_a_worker_of_its_session_lives(stores: Stores, lock: Make) -> None:
    """A worker that was forked meanwhile (a data loader's) has inherited the open lock file."""
    held = lock(stores.clone)
    held.take()
    with child(lambda pipe: pipe.poll(None)):
        held.release()
        other = lock(stores.clone, lease=600.0)
        assert other.try_take()
        hang(other)
        other._unlock_file()  # as the system does when the process dies
        assert held.try_take()


def compete(clone: Path, rounds: int, wait: Callable[[], object], report: Callable[[str], object]) -> None:
    """Start a session together with others, several times, and report each time how it ended."""
    for _ in range(rounds):
        session = RunLock(Refs(clone, Credentials()), NAME, lease=10.0, say=str)
        wait()
        report(outcome_of(session))
        wait()
        session.release()
        wait()


def outcome_of(session: RunLock) -> str:
    """Take the run; return whether it is held, or the error."""
    try:
        session.take()
    except RunHeldError as error:
        return error.what
    return "held"


REFUSED = f"another session is training {NAME} and is alive."
ROUNDS = pytest.mark.parametrize("rounds", [2, pytest.param(10, marks=pytest.mark.slow)])


@ROUNDS
@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_of_sessions_that_start_together_one_takes_the_run(stores: Stores, kind: str, rounds: int) -> None:
    """The others end with an error after the holder has answered, whatever Git says of their pushes."""
    clones = [stores.clone, stores.clone, stores.clone_again()]
    work = FORK if kind == "processes" else dummy
    barrier, answers = work.Barrier(len(clones), timeout=120), work.Queue()
    sessions = [work.Process(target=compete, args=(clone, rounds, barrier.wait, answers.put)) for clone in clones]
    for session in sessions:
        session.start()
    for _ in range(rounds):
        assert sorted(answers.get(timeout=120) for _ in clones) == [REFUSED, REFUSED, "held"]
    for session in sessions:
        session.join(60)
    assert stores.refs() == {}


def test_of_two_sessions_that_saw_the_run_free_the_later_one_asks(
    stores: Stores, lock: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Creating the ref is a compare-and-swap: what was read before it cannot mislead."""
    first, second = lock(stores.clone), lock(stores.clone_again())
    after_reading(monkeypatch, first.take)
    assert not second.try_take()
    with pytest.raises(RunHeldError):
        second.take()


def test_the_first_two_sessions_of_a_repository_both_hold_their_runs(
    stores: Stores, lock: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both push the repository's identity; the one whose push is refused for it is not told that its run is held."""
    first, second = lock(stores.clone, "detection-other"), lock(stores.clone_again())
    after_reading(monkeypatch, first.take)
    assert second.try_take()


# ── asking ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_living_holder_answers(stores: Stores, lock: Make) -> None:
    """The question goes and the run's ref moves; the session's record stays. Failed looks are repeated."""
    held = lock(stores.clone)
    held.take()
    before, record, away = stores.refs()[REF], record_of(stores), stores.folder / "away.git"
    stores.origin.rename(away)
    time.sleep(0.5)  # some looks fail
    away.rename(stores.origin)
    move_to(stores, before, ASK)
    eventually(lambda: ASK not in stores.refs())
    assert stores.refs()[REF] != before
    assert record_of(stores).but(nonce="") == record.but(nonce="")


@pytest.mark.parametrize("shared", [False, True], ids=["another clone", "the same clone"])
def test_a_second_session_stops_when_the_first_has_answered(stores: Stores, lock: Make, shared: bool) -> None:
    """The error names the remedy; the first session continues."""
    first, second = lock(stores.clone), lock(stores.clone if shared else stores.clone_again())
    assert first.try_take()
    assert not second.try_take()
    with pytest.raises(RunHeldError, match="is alive") as caught:
        second.take()
    assert "wait for it to end" in caught.value.remedy
    assert first.record is not None
    first.push(first.record)
    first.release()
    second.take()


def test_holding_a_run_costs_no_push(stores: Stores, lock: Make) -> None:
    """A holder moves its ref only to answer a question."""
    held = lock(stores.clone)
    held.take()
    before = stores.refs()
    time.sleep(1.0)  # ten looks
    assert stores.refs() == before


def test_a_dead_session_of_another_clone_is_taken_over_after_its_lease(stores: Stores, lock: Make) -> None:
    """Not earlier by the asker's own clock, and with what it had declared."""
    lines: list[str] = []
    store_declared(stores.clone, dead(lock, stores.clone))
    second, began = lock(stores.clone_again(), say=lines.append), time.monotonic()
    second.take()
    assert time.monotonic() - began >= LEASE
    assert record_of(stores).session == (second.record and second.record.session)
    assert [copy.oid for copy in record_of(stores).undo] == [
        md5_of(model) for model in models_of(stores.clone).values()
    ]
    assert any("is dead, and this one takes over" in line for line in lines)
    assert ASK not in stores.refs()


def test_the_time_since_the_first_question_counts(stores: Stores, lock: Make) -> None:
    """The first session's lease expires while the second one clones, installs and pulls: no further wait is needed."""
    lines: list[str] = []
    dead(lock, stores.clone)
    second = lock(stores.clone_again(), say=lines.append)
    assert not second.try_take()
    time.sleep(LEASE)
    second.take()
    assert not any("asking whether it lives" in line for line in lines)


def test_a_question_that_was_answered_while_the_run_was_read_does_not_count(
    stores: Stores, lock: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit that was read is the answer: only a question after it can show that the holder is silent."""
    held, second = lock(stores.clone), lock(stores.clone_again())
    held.take()
    move_to(stores, stores.refs()[REF], ASK)
    read = second.refs.read_runs

    def read_the_answer(name: str) -> dict[str, SeenRun]:
        eventually(lambda: ASK not in stores.refs())
        return read(name)

    with monkeypatch.context() as patch:
        patch.setattr(second.refs, "read_runs", read_the_answer)
        assert not second.try_take()
    eventually(lambda: ASK not in stores.refs())
    hang(held)  # it does not answer the third session's question before the second one looks
    time.sleep(LEASE)
    move_to(stores, stores.refs()[REF], ASK)
    with pytest.raises(RunHeldError, match="is alive"):
        second.take()
    assert held.confirm() is None


def test_a_question_that_was_answered_while_a_recovery_read_the_run_does_not_count(
    stores: Stores, lock: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recovery that sleeps for a lease then finds a third session's question, and must wait for its answer."""
    held = lock(stores.clone, lease=LEASE)
    held.take()
    with open_remotes(stores.clone_again(), Credentials()) as remotes:
        recovery, read = Recovery(remotes, str), remotes.refs.read_runs
        move_to(stores, stores.refs()[REF], ASK)

        def read_the_answer() -> dict[str, SeenRun]:
            eventually(lambda: ASK not in stores.refs())
            return read()

        with monkeypatch.context() as patch:
            patch.setattr(remotes.refs, "read_runs", read_the_answer)
            recovery.look(ask=False)
        hang(held)  # it does not answer the third session's question before the recovery looks again
        time.sleep(LEASE)
        move_to(stores, stores.refs()[REF], ASK)
        recovery.look()
    assert [run.name for run in recovery.left.values()] == [NAME]
    assert held.reread(held.ref)


def test_a_lock_can_ask_again_after_its_release(stores: Stores, lock: Make) -> None:
    """The second time counts from its own question."""
    second = lock(stores.clone_again())
    assert second.try_take()
    second.release()
    dead(lock, stores.clone)
    assert not second.try_take()
    assert ASK in stores.refs()
    second.take()


def test_a_question_that_exists_already_counts(stores: Stores, lock: Make) -> None:
    """The asker needs to create none, and times the lease from when it saw run and question together."""
    dead(lock, stores.clone, lease=3 * LEASE)
    second = lock(stores.clone_again())
    move_to(stores, stores.refs()[REF], ASK)
    no_questions(stores)
    began = time.monotonic()
    second.take()
    assert time.monotonic() - began >= 3 * LEASE
    assert list(stores.refs()) == [REF]


def test_a_question_that_cannot_be_asked_is_an_error(stores: Stores, lock: Make, impatient: None) -> None:
    """The session neither waits for ever nor takes over."""
    dead(lock, stores.clone)
    no_questions(stores)
    before = stores.refs()
    with pytest.raises(GitPushError, match=re.escape(ASK)):
        lock(stores.clone_again()).take()
    with pytest.raises(GitPushError, match=re.escape(ASK)):
        recover(stores.clone_again("third"), say=str)
    assert stores.refs() == before


def test_a_question_that_was_answered_does_not_count_for_the_next_one(
    stores: Stores, lock: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder answers while it is asked: the question is asked anew at once, and has its whole lease."""
    first, second = dead(lock, stores.clone), lock(stores.clone_again())
    move_to(stores, stores.refs()[REF], ASK)
    read = second.refs.read_runs

    def answer_and_read(name: str) -> dict[str, SeenRun]:
        first.push(first.record, RefUpdate(ASK, ANY, None))
        return read(name)

    with monkeypatch.context() as patch:
        patch.setattr(second.refs, "read_runs", answer_and_read)
        assert not second.try_take()
    assert ASK in stores.refs()
    began = time.monotonic()
    second.take()
    assert time.monotonic() - began >= 0.9 * LEASE


def test_the_first_run_of_a_repository_is_not_taken_for_a_foreign_one(
    stores: Stores, lock: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One push creates the run and the repository's identity, while another session or a recovery reads both."""
    lines: list[str] = []
    read_runs, first = Refs.read_runs, lock(stores.clone)
    others: list[Callable[[], object]] = [
        partial(recover, stores.clone_again("third"), say=lines.append), lock(stores.clone_again()).try_take
    ]  # fmt: skip

    def take_and_read(refs: Refs, name: str = "") -> dict[str, SeenRun]:
        monkeypatch.setattr(Refs, "read_runs", read_runs)
        first.take()
        return read_runs(refs, name)

    for act, expected in zip(others, (1, False), strict=True):
        run_git("update-ref", "-d", Refs(stores.clone, Credentials()).identity_ref, cwd=stores.origin)
        monkeypatch.setattr(Refs, "read_runs", take_and_read)
        assert act() == expected
        first.release()
        first = lock(stores.clone)
    assert lines == [f"Waiting for at most 20 s for an answer of {NAME} …"]


def no_questions(stores: Stores) -> None:
    """Make the Git remote refuse to create a question, but not to delete one."""
    zero = "0" * 40
    stores.write_hook(
        "pre-receive", f'while read old new ref; do case "$ref $new" in *" {zero}") ;; refs/asks/*) exit 1;; esac; done'
    )


@pytest.mark.parametrize("shared", [False, True], ids=["two clones", "one clone"])
def test_of_two_askers_one_takes_over(stores: Stores, lock: Make, shared: bool) -> None:
    """The other one sees that the run is held by a living session."""
    dead(lock, stores.clone)
    other = stores.clone_again()
    askers = [lock(other), lock(other if shared else stores.clone_again("third"))]
    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(outcome_of, askers)) == [REFUSED, "held"]
    assert list(stores.refs()) == [REF]


def test_a_remote_that_refuses_is_an_error(stores: Stores, lock: Make, impatient: None) -> None:
    """It is not mistaken for another session's hold."""
    stores.write_hook("pre-receive", "exit 1")
    with pytest.raises(GitPushError):
        lock(stores.clone).try_take()
    stores.remove_hook("pre-receive")
    assert lock(stores.clone).try_take()


# ── processes of the same clone ───────────────────────────────────────────────────────────────────────────────────────


def hold_for_ever(clone: Path, pipe: Connection, lease: float) -> None:
    """Take the run and hold it until this process is killed."""
    held = RunLock(Refs(clone, Credentials()), NAME, lease=lease, say=str)
    held.take()
    pipe.send("held")
    pipe.poll(None)


def test_a_killed_session_of_the_same_clone_is_taken_over_at_once(stores: Stores, lock: Make) -> None:
    """A restarted kernel resumes without waiting for the lease; a session of another clone must ask."""
    with child(lambda pipe: hold_for_ever(stores.clone, pipe, 600.0)) as (process, pipe):
        assert pipe.recv() == "held"
        assert not lock(stores.clone).try_take()
        process.kill()
        process.join()
        assert not lock(stores.clone_again()).try_take()
        assert lock(stores.clone).try_take()


def test_a_living_session_is_not_taken_for_dead_in_a_copy_of_its_clone(stores: Stores, lock: Make) -> None:
    """The copy has the lock file, too, and nobody has locked it."""
    with child(lambda pipe: hold_for_ever(stores.clone, pipe, 600.0)) as (_, pipe):
        assert pipe.recv() == "held"
        copy = stores.folder / "copy"
        shutil.copytree(stores.clone, copy)
        assert not lock(copy).try_take()


def test_runs_that_have_ended_leave_no_file_in_the_clone(stores: Stores, lock: Make) -> None:
    """Neither their lock files nor private indexes stay, also of a rehearsal, whose run has a name of its own."""
    held = lock(stores.clone)
    held.take()
    with checkpoints(stores.clone, held) as publisher:
        publish_checkpoint(publisher, stores.clone)
    rehearse(stores.clone, say=str)
    assert [path.name for path in (held.refs.private / "runs").iterdir()] == [NAME]
    held.release()
    assert [path for path in held.refs.private.rglob("*") if path.name.startswith("index") or path.name == NAME] == []


def test_a_stopped_session_of_the_same_clone_is_taken_over_after_its_lease(stores: Stores, lock: Make) -> None:
    """Its process lives and keeps the lock file; the run's ref decides."""
    with child(lambda pipe: hold_for_ever(stores.clone, pipe, LEASE)) as (process, pipe):
        assert pipe.recv() == "held"
        os.kill(process.pid or 0, signal.SIGSTOP)
        lock(stores.clone).take()


def test_a_session_whose_take_arrived_late_is_dead_when_it_has_ended(
    stores: Stores, lock: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reported that the host did not answer; the next session of this clone takes over at once."""
    first = lock(stores.clone, lease=600.0)
    with monkeypatch.context() as patch:
        patch.setattr(repository_module, "PAUSES", ())
        late = lose_answer(patch, happens=False)
        with pytest.raises(GitPushError, match="was lost"):
            first.take()
    first.refs.push(*late[0])
    assert list(stores.refs()) == [REF]
    assert lock(stores.clone).try_take()


# ── pushes whose answer is lost, and pushes that arrive late ──────────────────────────────────────────────────────────


def lose_answer(patch: pytest.MonkeyPatch, number: int = 1, *, happens: bool) -> list[Sequence[RefUpdate]]:
    """Lose the answer of the push with this number, after it has happened or without; return the list of all pushes."""
    push, sent = Refs.push, list[Sequence[RefUpdate]]()

    def lose(refs: Refs, *updates: RefUpdate) -> None:
        sent.append(updates)
        lost = len(sent) == number
        if happens or not lost:
            push(refs, *updates)
        if lost:
            raise GitPushError("the answer was lost")

    patch.setattr(Refs, "push", lose)
    return sent


HAPPENS = pytest.mark.parametrize(
    "happens", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["happened", "did not happen"]
)


def answer(held: RunLock, stores: Stores) -> None:
    """Let the holder answer a question."""
    move_to(stores, stores.refs()[REF], ASK)
    eventually(lambda: ASK not in stores.refs())
    with held._pushing:
        pass  # the poller has read what its push did


def declare(held: RunLock, _: Stores) -> None:
    """Declare a copy."""
    assert held.record is not None
    copy = DeclaredCopy(oid="0" * 32, size=1, identity="1009843200", store="folder of a test")
    held.push(held.record.but(publishing=(copy,)))


def move_checkpoint(held: RunLock, _: Stores) -> None:
    """Create the checkpoint branch together with a move of the run."""
    assert held.record is not None
    held.push(held.record, RefUpdate(HEAD, None, held.refs.head()))


def end_with_commit(held: RunLock, _: Stores) -> None:
    """Create the run's branch, and delete its checkpoint and its ref."""
    held.push(None, RefUpdate(PUBLISHED, None, held.refs.head()), RefUpdate(HEAD, held.refs.head(), None))


PUSHES: dict[str, tuple[Callable[[RunLock, Stores], object], list[str]]] = {
    "take": (lambda held, _: held.take(), [REF]),
    "take over": (lambda held, _: held.take(), [REF]),
    "answer": (answer, [REF]),
    "declare": (declare, [REF]),
    "checkpoint": (move_checkpoint, [HEAD, REF]),
    "commit": (end_with_commit, [PUBLISHED]),
    "release": (lambda held, _: held.release(), []),
}
"""Each kind of push of a run's ref, and the refs after it."""


@HAPPENS
@pytest.mark.parametrize("kind", PUSHES)
def test_a_push_whose_answer_was_lost_is_known_to_have_happened_or_not(
    stores: Stores, lock: Make, monkeypatch: pytest.MonkeyPatch, kind: str, happens: bool
) -> None:
    """It is repeated only if it has not happened, and the lock works on."""
    held = lock(stores.clone)
    if kind == "take over":
        dead(lock, stores.clone_again())
        move_to(stores, stores.refs()[REF], ASK)
    elif kind != "take":
        held.take()
    if kind == "commit":
        move_checkpoint(held, stores)
    action, expected = PUSHES[kind]
    with monkeypatch.context() as patch:
        sent = lose_answer(patch, happens=happens)
        action(held, stores)
    assert len(sent) == (1 if happens else 2)
    assert list(stores.refs()) == expected
    held.take()
    assert held.record is not None
    assert record_of(stores).session == held.record.session
    held.push(held.record.but(publishing=()))


@pytest.mark.parametrize("next_one", ["push", "release", "take over"])
@pytest.mark.parametrize("arrives", ["before", "after"])
def test_a_push_that_arrives_late_cannot_do_harm(
    stores: Stores, lock: Make, monkeypatch: pytest.MonkeyPatch, arrives: str, next_one: str
) -> None:
    """After the next push of the run it changes nothing; if it arrives before that one, it is recognised."""
    held = lock(stores.clone, lease=LEASE if next_one == "take over" else LONG)
    held.take()
    with monkeypatch.context() as patch:
        patch.setattr(repository_module, "PAUSES", ())
        sent = lose_answer(patch, happens=False)
        with pytest.raises(GitPushError, match="was lost"):
            move_checkpoint(held, stores)
    if arrives == "before":
        held.refs.push(*sent[0])
    if next_one == "push":
        assert held.record is not None
        held.push(held.record)
    elif next_one == "release":
        held.release()
    else:
        hang(held)
        lock(stores.clone_again()).take()
    before = stores.refs()
    assert (HEAD in before) == (arrives == "before")
    assert (REF in before) == (next_one != "release")
    if arrives == "after":
        with pytest.raises(GitPushError):
            held.refs.push(*sent[0])
        assert stores.refs() == before


TOKEN = "ghp_canaryTokenOfTheLock0123456789abcdef"


@contextmanager
def hosted(stores: Stores) -> Iterator[tuple[GitHost, RunLock]]:
    """Serve the Git remote over HTTP, and yield the host and the lock of a session that uses it."""
    with GitHost(stores.folder / "hosted") as host:
        host.add_repository("owner/name", stores.origin)
        host.add_token(TOKEN)
        run_git("remote", "set-url", "origin", host.address("owner/name"), cwd=stores.clone)
        held = RunLock(Refs(stores.clone, Credentials(TOKEN)), NAME, lease=LONG, say=str)
        yield host, held
        held.release()


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 5))])
def test_an_overloaded_host_is_waited_out(stores: Stores, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """It refuses requests at random, and the answers of some pushes are lost; the run's life ends as without."""
    monkeypatch.setattr(repository_module, "PAUSES", (0.01,) * 12)
    chance = random.Random(seed)

    def fault(line: str) -> Kind | None:
        if chance.random() < 0.2:
            return chance.choice(("403", "429", "503"))
        if "POST" in line and "git-receive-pack" in line and chance.random() < 0.15:
            return chance.choice(("lost answer", "cut answer", "cut"))
        return None

    with hosted(stores) as (host, held):
        monkeypatch.setattr(host, "_take_fault", fault)
        held.take()
        for action in (declare, answer, move_checkpoint, end_with_commit):
            action(held, stores)
            held.confirm()
        assert list(stores.refs()) == [PUBLISHED]
        held.take()
        held.release()
        assert host.count("receive-pack") > 2 * 7, "no push was repeated"
    assert list(stores.refs()) == [PUBLISHED]


@pytest.mark.slow
def test_a_push_that_a_host_executes_late_changes_nothing(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client has given it up, and the run has moved on meanwhile."""
    with hosted(stores) as (host, held):
        held.take()
        host.silence = 8.0
        host.add_fault(f"POST .*git-receive-pack .*{HEAD}", "silent")
        with monkeypatch.context() as patch:
            patch.setattr(repository_module, "PAUSES", ())
            patch.setattr(refs_module, "PUSH_TIMEOUT", 4.0)
            with pytest.raises(GitPushError, match="no answer"):
                move_checkpoint(held, stores)
        declare(held, stores)
        before = stores.refs()
        eventually(lambda: any(HEAD in request.asks and request.status for request in host.requests))
        assert stores.refs() == before


def test_a_release_that_the_remote_does_not_receive_leaves_the_run_to_the_next_session(
    stores: Stores, lock: Make, impatient: None
) -> None:
    """One of the same clone takes over at once, one of another clone after the lease."""
    held, away = lock(stores.clone, lease=LEASE), stores.folder / "away.git"
    held.take()
    stores.origin.rename(away)
    held.release()
    away.rename(stores.origin)
    assert list(stores.refs()) == [REF]
    second = lock(stores.clone, lease=LEASE)
    assert second.try_take()
    stores.origin.rename(away)
    second.release()
    away.rename(stores.origin)
    third = lock(stores.clone_again())
    assert not third.try_take()
    third.take()


# ── fencing ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class StopsWhenRead(Mapping[str, object]):
    """The record of a checkpoint; reading it, after the upload and before the push, stops this process."""

    def __getitem__(self, _: str) -> object:
        """Return an epoch."""
        return 2

    def __iter__(self) -> Iterator[str]:
        """Stop, then yield the only key."""
        stop_here()
        return iter(["epoch"])

    def __len__(self) -> int:
        """Return 1."""
        return 1


def error_of(action: Callable[[], object]) -> str:
    """Return the kind of error in which an action ends."""
    try:
        action()
    except GitPushError as error:
        return type(error).__name__
    return ""


def suspended(clone: Path, pipe: Connection, at: str) -> None:
    """Publish a checkpoint, sleep `at` some step of the next publication, then try everything and send the errors."""
    lines: list[str] = []
    held = RunLock(Refs(clone, Credentials()), NAME, lease=LEASE, say=lines.append)
    held.take()

    def say(line: str) -> None:
        if at == "before the commit push" and line.startswith("Phase 4"):
            stop_here()

    with checkpoints(clone, held) as publisher:
        publish_checkpoint(publisher, clone)
        write_run(clone, seed=2)
        record = StopsWhenRead() if at == "after an upload" else {"epoch": 2}
        attempts = [
            lambda: publisher.publish(publication(clone, CHECKPOINT), record),
            lambda: publish(clone, hold=held, say=say),
        ]
        if at == "before the commit push":
            attempts.reverse()
        if at in ("idle", "before an upload"):
            stop_here()
        if at == "idle":
            eventually(lambda: held.record is None)
        pipe.send(([error_of(attempt) for attempt in (*attempts, held.confirm)], lines))


@pytest.mark.parametrize(
    "at",
    ["idle", pytest.param("before an upload", marks=pytest.mark.slow), "after an upload", "before the commit push"],
)
def test_a_session_that_slept_past_its_lease_is_fenced(stores: Stores, lock: Make, at: str) -> None:
    """Awake again, it is told so; its pushes are rejected, and nothing of it stays on the remotes."""
    other = stores.clone_again()
    write_run(other, seed=3)
    with child(lambda pipe: suspended(stores.clone, pipe, at)) as (process, pipe):
        eventually(lambda: is_stopped(process))
        second = lock(other)
        second.take()
        with checkpoints(other, second) as publisher:
            publish_checkpoint(publisher, other, 3)
            refs, objects = stores.refs(), stores.objects()
            assert sorted(objects.values()) == sorted(models_of(other).values())
            os.kill(process.pid or 0, signal.SIGCONT)
            assert pipe.poll(60)
            errors, lines = pipe.recv()
            assert set(errors) == {"TakenOverError"}
            assert at != "idle" or any("another session has taken over" in line for line in lines)
            assert stores.refs() == refs
            publisher.end()
        published = publish(other, hold=second)
    assert stores.refs() == {PUBLISHED: published.commit}
    assert stores.objects() == objects_of(other)


def test_the_lock_of_a_session_that_was_taken_over_is_of_no_use_any_more(stores: Stores, lock: Make) -> None:
    """It does not take the run again: its training has ended, and the other session continues from its checkpoint."""
    first, second = dead(lock, stores.clone), lock(stores.clone_again())
    second.take()
    assert first.record is not None
    with pytest.raises(TakenOverError, match="did not answer within its lease") as caught:
        first.push(first.record)
    assert "let the other session finish" in caught.value.remedy
    second.release()
    for action in (first.confirm, first.take, first.reread):
        with pytest.raises(TakenOverError):
            action()
    assert stores.refs() == {}


def test_no_thread_of_a_lock_survives_it(stores: Stores, lock: Make) -> None:
    """The answering thread ends."""
    first, second = lock(stores.clone), lock(stores.clone_again())
    first.try_take()
    second.try_take()
    first.release()
    second.take()
    second.release()
    eventually(lambda: not [thread for thread in threading.enumerate() if NAME in thread.name])


# ── runs that are not this session's to take ──────────────────────────────────────────────────────────────────────────


def copied(stores: Stores, lock: Make) -> Path:
    """Copy every ref to another repository while a run is held; return a clone of that one."""
    lock(stores.clone).take()
    copy = stores.folder / "copy.git"
    run_git("init", "--quiet", "--bare", "--initial-branch=main", copy, cwd=stores.folder)
    run_git("push", "--quiet", "--mirror", copy, cwd=stores.origin)
    clone = stores.clone_again()
    run_git("remote", "set-url", "origin", copy, cwd=clone)
    return clone


def written_by_a_newer_version(stores: Stores, lock: Make) -> Path:
    """Let a run be held by a session of another protocol; return a clone."""
    held = dead(lock, stores.clone)
    assert held.record is not None
    held.push(held.record.but(protocol=3))
    return stores.clone_again()


def of_another_name(stores: Stores, lock: Make) -> Path:
    """Let another run be held whose name is shortened to the same ref; return a clone."""
    dead(lock, stores.clone, "detection/exp001")
    return stores.clone_again()


FOREIGN: dict[str, tuple[Callable[[Stores, Make], Path], str]] = {
    "copied": (copied, "belongs to another repository, and was copied here by `git push --mirror`"),
    "newer": (written_by_a_newer_version, "was written by another version of this project"),
    "namesake": (of_another_name, "is held by detection/exp001, whose name is shortened to the same ref"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_run_is_left_alone(stores: Stores, lock: Make, kind: str) -> None:
    """The error says why, and its remedy works. `recover` reports the run, unless it can recover a namesake's."""
    make, why = FOREIGN[kind]
    clone = make(stores, lock)
    before = run_git("ls-remote", "origin", cwd=clone)
    for attempt in (lock(clone).try_take, lock(clone).take):
        with pytest.raises(RunHeldError, match=re.escape(f"{REF} {why}.")) as caught:
            attempt()
    lines: list[str] = []
    if kind != "namesake":
        assert recover(clone, say=lines.append) == 1
        assert [line for line in lines if why in line and "left alone" in line] == lines
    assert run_git("ls-remote", "origin", cwd=clone) == before
    remedy = re.search(r"`git (push origin \S+)`", caught.value.remedy)
    assert remedy
    run_git(*remedy[1].split(), cwd=clone)
    assert lock(clone).try_take()


def test_long_names_work(stores: Stores, lock: Make) -> None:
    """They are shortened to a part of a ref and of files' names; names that begin alike stay different runs."""
    assert len(LONG_NAME.encode()) == 300
    held, namesake = lock(stores.clone, LONG_NAME), lock(stores.clone, f"{LONG_NAME}ü")
    held.take()
    namesake.take()
    with pytest.raises(RunHeldError, match="is alive"):
        lock(stores.clone_again(), LONG_NAME).take()
    with checkpoints(stores.clone, held) as publisher:
        publish_checkpoint(publisher, stores.clone)
        publish_checkpoint(publisher, stores.clone)
        assert len(stores.objects()) == len(WEIGHTS)
        assert held.checkpoint in stores.refs()
        publisher.end()
    publish(stores.clone, hold=held)
    namesake.release()
    assert list(stores.refs()) == [PUBLISHED]
    assert stores.objects() == objects_of(stores.clone)


# ── recovering ────────────────────────────────────────────────────────────────────────────────────────────────────────


def leave_waste(clone: Path, held: RunLock) -> dict[str, bytes]:
    """Publish a checkpoint, then fail after the upload of another one; return the files before that."""
    with checkpoints(clone, held) as publisher:
        publish_checkpoint(publisher, clone)
        files = {path.name: path.read_bytes() for path in (clone.parent / "storage").glob("*checkpoint-*")}
        with pytest.raises(TypeError):
            publisher.publish(publication(clone, CHECKPOINT), {"epoch": object()})
    return files


def test_recovery_rolls_back_the_dead_and_leaves_the_living(stores: Stores, lock: Make) -> None:
    """All are asked in one push; of the dead only the last complete checkpoint stays."""
    alive = lock(stores.clone, "alive")
    alive.take()
    leave_waste(stores.clone, alive)  # an upload that its next push may name
    store_declared(stores.clone, alive, seed=1)
    living = stores.objects()
    store_declared(stores.clone, dead(lock, stores.clone, "dead"), seed=2)
    files = leave_waste(stores.clone, dead(lock, stores.clone))
    checkpoint = stores.refs()[HEAD]
    assert len(stores.objects()) > len(living | files) + len(WEIGHTS)
    asked = f"{stores.folder}/asked"
    stores.write_hook("post-receive", f"grep -c '^0\\{{40\\}} .* refs/asks/' >> {asked} || true")
    lines: list[str] = []
    assert recover(stores.clone_again(), say=lines.append) == 1
    first, *again = (count for count in Path(asked).read_text().split() if count != "0")
    assert (first, set(again) - {"1"}) == ("3", set())  # one is asked again if it answers between the two reads
    assert list(stores.refs()) == [alive.checkpoint, HEAD, "refs/runs/alive"]
    assert stores.refs()[HEAD] == checkpoint
    assert stores.objects() == living | files
    assert len([line for line in lines if line.startswith("Recovered refs/runs/")]) == 2
    assert alive.record is not None
    alive.push(alive.record)


def test_recovery_without_patience_asks_nobody(stores: Stores, lock: Make) -> None:
    """It recovers only what a dead process of this clone has left."""
    store_declared(stores.clone, dead(lock, stores.clone_again(), "away"), seed=1)
    here = dead(lock, stores.clone)
    store_declared(stores.clone, here, seed=2)
    stored = stores.objects()
    here._unlock_file()  # as the system does when a process dies
    before = stores.refs()
    assert recover(stores.clone, patience=0, say=str) == 1
    assert stores.refs() == {ref: before[ref] for ref in before if ref != REF}
    assert stores.objects() == {
        path: stored[path] for path in stored if stored[path] not in models_of(stores.clone).values()
    }


def test_recovery_sweeps_files_of_runs_that_nobody_holds(stores: Stores, lock: Make) -> None:
    """It needs no push for that; the checkpoint stays whole."""
    held = dead(lock, stores.clone)
    files = leave_waste(stores.clone, held)
    held.release()
    before = stores.refs()
    assert list(before) == [HEAD]
    stores.write_hook("pre-receive", "exit 1")
    assert recover(stores.clone_again(), patience=0, say=str) == 0
    assert stores.objects() == files
    assert stores.refs() == before


@HAPPENS
@pytest.mark.parametrize("number", [1, 2, 3])
def test_recovery_survives_a_lost_answer(
    stores: Stores, lock: Make, monkeypatch: pytest.MonkeyPatch, number: int, happens: bool
) -> None:
    """Of the question, of the push that takes the run over, and of the one that deletes its ref."""
    store_declared(stores.clone, dead(lock, stores.clone))
    sent = lose_answer(monkeypatch, number, happens=happens)
    assert recover(stores.clone_again(), say=str) == 0
    assert len(sent) == (3 if happens else 4)
    assert stores.refs() == {}
    assert stores.objects() == {}


def test_two_machines_can_recover_at_once(stores: Stores, lock: Make) -> None:
    """They ask from different commits; each dead run is recovered once, and neither call fails."""
    others = [stores.clone_again("second"), stores.clone_again("third")]
    run_git("commit", "--quiet", "--allow-empty", "--message=more", cwd=others[1])
    for number in range(3):
        store_declared(stores.clone, dead(lock, stores.clone, f"dead-{number}", lease=2 * LEASE), seed=number)
    lines: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        for job in [pool.submit(recover, other, say=lines.append) for other in others]:
            job.result()
    recover(others[0], say=lines.append)
    assert stores.refs() == {}
    assert stores.objects() == {}


def test_recovery_waits_for_the_answers_of_a_slow_host(
    stores: Stores, lock: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not wait for runs that begin meanwhile."""
    dead(lock, stores.clone)
    slow, begin = [partial(time.sleep, 0.3)] * 100, partial(dead, lock, stores.clone, "late", lease=600.0)
    after_reading(monkeypatch, *slow[:3], begin, *slow)
    assert recover(stores.clone_again(), say=str) == 0
    assert list(stores.refs()) == ["refs/runs/late"]


def test_recovery_leaves_what_earlier_versions_have_written(stores: Stores) -> None:
    """Their intents are reported, and none of them counts as a run."""
    head = run_git("rev-parse", "HEAD", cwd=stores.clone)
    for ref in ("refs/intents/1", "refs/heads/kaggle-intents/2", f"refs/heads/kaggle-runs/{NAME}"):
        move_to(stores, head, ref)
    before, lines = stores.refs(), list[str]()
    assert recover(stores.clone, say=lines.append) == 0
    assert sorted(line.split()[0] for line in lines if "is left alone" in line) == sorted(before)
    assert stores.refs() == before


def test_copies_on_another_dvc_remote_are_left_to_a_clone_that_uses_it(stores: Stores, lock: Make) -> None:
    """The run's ref keeps the list of them until then."""
    store_declared(stores.clone, dead(lock, stores.clone))
    elsewhere, stored, lines = stores.clone_again(), stores.objects(), list[str]()
    config = "[core]\n    remote = elsewhere\n['remote \"elsewhere\"']\n    url = {}\n"
    (stores.folder / "elsewhere").mkdir()
    (elsewhere / ".dvc" / "config.local").write_text(config.format(stores.folder / "elsewhere"))
    assert recover(elsewhere, say=lines.append) == 1
    assert [line for line in lines if f"{REF} names copies on another DVC remote" in line]
    assert not [line for line in lines if line.startswith("Recovered")]
    assert record_of(stores).undo
    assert stores.objects() == stored
    assert recover(stores.clone_again("third"), say=str) == 0
    assert stores.refs() == {}
    assert stores.objects() == {}


def commands(stores: Stores, lock: Make, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return the number of Git commands that taking and releasing a run, and a recovery that asks nobody, need."""
    run, count = run_command, [0]

    def counted(*words: Any, **options: Any) -> Completed:
        count[0] += 1
        return run(*words, **options)

    with monkeypatch.context() as patch:
        patch.setattr(repository_module, "run_command", counted)
        patch.setattr(lock_module, "POLL", 600.0)  # its looks would count
        held = lock(stores.clone, lease=6000.0)
        held.take()
        recover(stores.clone, patience=0, say=str)
        held.release()
    return count[0]


def test_the_number_of_git_commands_does_not_grow_with_the_runs(
    stores: Stores, lock: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session with 50 others needs as many as one with two."""
    other = dead(lock, stores.clone, "other-0", lease=600.0)
    leave_waste(stores.clone, other)
    record, refs = other.record, other.refs
    assert record is not None

    def add(numbers: range) -> None:
        names = [f"other-{number}" for number in numbers]
        refs.push(*(RefUpdate(f"refs/runs/{name}", None, refs.write_record(record.but(name=name))) for name in names))
        head = stores.refs()[other.checkpoint]
        refs.push(*(RefUpdate(f"refs/heads/kaggle-checkpoint-{name}", None, head) for name in names))

    add(range(1, 2))
    commands(stores, lock, monkeypatch)  # makes the mirror
    few = commands(stores, lock, monkeypatch)
    add(range(2, 50))
    assert commands(stores, lock, monkeypatch) == few
