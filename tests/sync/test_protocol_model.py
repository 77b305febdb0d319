"""Claims on the protocol's rules: with all of them no order of steps breaks a promise, without any one some order does.

A failure prints a shortest history; `pytest -s` prints that of each rule that is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from protocol_model import STRANGER, Actor, Model, Record, Rules, Run, World, explore

A, B, C = 1, 2, 4  # objects; a sum is a set of them
TWO_RUNS, THREE_RUNS, FORK = ((0, 0), (0, 1)), ((0, 0), (0, 1), (0, 2)), ((0, 0), (1, 0))
X, XF, W, U, H = Actor("X"), Actor("X", run=1), Actor("W"), Actor("U"), Actor("H", objects=A)
P, D = Actor("P"), Actor("P", discards=True)


def trains(checkpoints: int, objects: int = 0, *, run: int = 0) -> Actor:
    """Return a session that makes checkpoints, and then publishes objects or releases R."""
    return Actor("S", run, checkpoints, objects)


def publishes(objects: int, *, run: int = 0) -> Actor:
    """Return a session that publishes objects and makes no checkpoint."""
    return Actor("S", run, 0, objects)


ONE = World((trains(1), X))
FINISHES = World((trains(2, A), X), deaths=2, losses=2)
TWO = World((trains(1), trains(1), X))
TWO_ALIVE = replace(TWO, hasty=1, deaths=0)
THREE_CHECKPOINTS_ALIVE = World((trains(2), trains(1), X), hasty=1, deaths=0)
ALL_PUSHES_LOST = World((trains(3), X), deaths=2, losses=3)
SWEPT = World((trains(1), W, X))
BY_HAND = World((trains(2, A), trains(1), U, X))
PUBLISHES = World((publishes(A), X))
DRIVE = World((publishes(A), publishes(A, run=1), X), TWO_RUNS)
KEYS = replace(DRIVE, twins=False)  # one copy a key
DRIVE_TWO = World((publishes(A | B), publishes(A | B, run=1), X), TWO_RUNS)
KEYS_TWO = replace(DRIVE_TWO, twins=False)
KEYS_ALIVE = replace(KEYS, hasty=1, deaths=0, leftovers=True)
KEYS_ALIVE_TWICE = World((*KEYS.actors, X), TWO_RUNS, twins=False, hasty=2, deaths=0, losses=0, leftovers=True)
KEYS_ONE_RUN_ALIVE = World((publishes(A), publishes(A), X), twins=False, hasty=1, deaths=0, leftovers=True)
STOPPED = World((trains(1, A), P, X))
STOPPED_TWICE = World((trains(1, A), trains(0, A), P, X), losses=0)
FORKED = World((publishes(A), publishes(A, run=1), X, XF), FORK)
FORKED_KEYS = replace(FORKED, twins=False, leftovers=True)
THREE_KEYS = World(
    (publishes(A | B), publishes(B | C, run=1), publishes(A | C, run=2), X), THREE_RUNS, twins=False, losses=0
)

EAGER, LATE_LIST = Rules(lazy_fence=False), Rules(order="TLRB")
UNNAMED = Rules(keep_named=False)  # without the safety net of rule 6

HOLDS = {
    "one-session-two-checkpoints-then-published": (FINISHES, Rules()),
    "every-checkpoint-push-is-in-doubt": (ALL_PUSHES_LOST, Rules()),
    "two-sessions-of-one-run-start-together": (TWO, Rules()),
    "two-sessions-with-two-lost-answers": (World((trains(2), trains(2), X), losses=2), Rules()),
    "two-sessions-the-first-is-taken-over-alive": (THREE_CHECKPOINTS_ALIVE, Rules()),
    "two-sessions-both-finish-the-run-taken-over-alive-deaths": (
        World((trains(1, A), trains(1, B), X), hasty=1, leftovers=True),
        Rules(),
    ),
    "three-sessions-ask-at-once": (World((trains(1), trains(0), trains(0), X), losses=0), Rules()),
    "two-runs-publish-one-content-on-drive": (replace(DRIVE, deaths=2), Rules()),
    "two-runs-two-objects-in-common-a-stranger-s-copy-on-drive": (replace(DRIVE_TWO, strangers=A), Rules()),
    "two-runs-publish-one-content-one-copy-a-key": (replace(KEYS, deaths=2), Rules()),
    "two-runs-two-objects-in-common-one-copy-a-key": (KEYS_TWO, Rules()),
    "two-runs-a-stranger-s-copy-one-copy-a-key": (replace(KEYS_TWO, strangers=A), Rules()),
    "two-runs-taken-over-alive-one-copy-a-key": (KEYS_ALIVE, Rules()),
    "a-fork-with-the-same-run-and-content-on-one-drive": (
        World((trains(1, A), trains(1, A, run=1), X, XF), FORK, losses=0),
        Rules(),
    ),
    "a-fork-publications-with-lost-answers": (FORKED, Rules()),
    "a-fork-one-copy-a-key-nothing-is-deleted": (FORKED_KEYS, Rules()),
    "listings-are-old": (World((trains(1, A), trains(1, A), X), lag=True), Rules()),
    "two-runs-listings-are-old": (replace(DRIVE, lag=True), Rules()),
    "a-sweeper-next-to-two-sessions": (World((trains(1), trains(0), W, X), hasty=1, losses=0), Rules()),
    "a-sweeper-next-to-a-run-that-finishes": (World((trains(1, A), trains(1), W, X), losses=0), Rules()),
    "a-sweeper-next-to-pushes-in-doubt": (World((trains(2), W, X), losses=2), Rules()),
    "a-person-pushes-by-hand-next-to-a-roll-back": (World((publishes(A), H, X)), Rules()),
    "a-person-deletes-the-checkpoint-branch": (BY_HAND, Rules()),
    "three-runs-publish-one-content-on-drive": (
        World((publishes(A), publishes(A, run=1), publishes(A, run=2), X), THREE_RUNS),
        Rules(),
    ),
    "three-runs-common-objects-in-pairs-one-copy-a-key": (THREE_KEYS, Rules()),
    "two-runs-taken-over-alive-on-drive": (replace(DRIVE, hasty=1, deaths=0), Rules()),
    "two-sessions-of-one-run-and-content-taken-over-alive-one-copy-a-key": (KEYS_ONE_RUN_ALIVE, Rules()),
    "recoverers-taken-over-alive-one-copy-a-key": (KEYS_ALIVE_TWICE, Rules()),
    "a-fork-taken-over-alive-on-drive": (
        World((trains(1, A), publishes(A, run=1), X, XF), FORK, losses=0, deaths=0, hasty=1),
        Rules(),
    ),
    "a-rejected-push-that-has-happened": (replace(PUBLISHES, echo=True), UNNAMED),
    "a-rejected-push-that-has-happened-two-sessions-taken-over-alive": (
        World((publishes(A), publishes(A), X), hasty=1, deaths=0, leftovers=True, echo=True),
        UNNAMED,
    ),
    "nothing-under-objects-paths-is-ever-deleted": (
        replace(KEYS_TWO, leftovers=True),
        Rules(never_delete=True, wait=False, in_order=False, verify=False, reread=False),
    ),
    "a-person-stops-a-run": (STOPPED, Rules()),
    "a-person-stops-one-of-two-sessions": (STOPPED_TWICE, Rules()),
    "a-person-stops-a-session-that-is-taken-over-alive": (
        World((trains(0, A), trains(0, A), P, X), hasty=1, deaths=0, losses=0, leftovers=True),
        Rules(),
    ),
    "a-person-discards-a-run": (World((trains(2, A), D, X)), Rules()),
    "a-person-discards-a-run-and-another-deletes-its-checkpoint": (World((trains(1, A), D, U, X)), Rules()),
    "a-fence-of-its-own-one-session": (FINISHES, EAGER),
    "a-fence-of-its-own-every-push-is-in-doubt": (ALL_PUSHES_LOST, EAGER),
    "a-fence-of-its-own-two-sessions": (TWO, EAGER),
    "a-fence-of-its-own-taken-over-alive": (TWO_ALIVE, EAGER),
    "files-listed-under-r-one-session": (FINISHES, LATE_LIST),
    "files-listed-under-r-two-sessions": (TWO, LATE_LIST),
    "files-listed-under-r-taken-over-alive": (TWO_ALIVE, LATE_LIST),
    "files-listed-under-r-listings-are-old": (World((trains(1, A), trains(1, A), X), lag=True), LATE_LIST),
    "files-listed-under-r-a-sweeper": (World((trains(1, A), trains(1), W, X), losses=0), LATE_LIST),
    "files-listed-under-r-a-person-deletes-the-checkpoint-branch": (BY_HAND, LATE_LIST),
}

BRANCH, FILE, COPY = "A BRANCH LACKS AN OBJECT", "A CHECKPOINT LACKS ITS FILE", "A COPY STAYS"
BREAKS = {
    "a-checkpoint-push-does-not-move-r": ("TWO SESSIONS MOVE ONE RUN", TWO_ALIVE, Rules(hold_in_push=False)),
    "after-a-lost-checkpoint-push-only-k-is-read": (FILE, ONE, Rules(fence_doubt=False)),
    "after-a-lost-commit-push-only-b-is-read": (BRANCH, PUBLISHES, Rules(fence_doubt=False)),
    "files-in-doubt-are-deleted-before-the-next-push": (FILE, ONE, Rules(kept_until="K was read")),
    "files-in-doubt-are-deleted-after-a-push-that-did-not-move-r": (
        FILE,
        replace(ALL_PUSHES_LOST, losses=2),
        Rules(kept_until="a push"),
    ),
    "files-in-doubt-are-deleted-without-reading-k": (FILE, ONE, Rules(kept_if_named=False)),
    "old-files-are-deleted-before-the-push": (FILE, World((trains(2), X)), Rules(delete_after=False)),
    "files-are-listed-after-k-was-read": (FILE, TWO_ALIVE, Rules(order="TBL")),
    "files-are-listed-under-r-and-r-is-not-read-again": (FILE, TWO_ALIVE, Rules(order="TLB")),
    "files-are-listed-under-r-after-r-was-read-again": (FILE, TWO_ALIVE, Rules(order="TRLB")),
    "k-is-read-before-r-is-taken": (FILE, TWO, Rules(order="LBT")),
    "a-sweeper-reads-r-then-lists-then-reads-k": (FILE, SWEPT, Rules(sweeper_order="RLB")),
    "a-sweeper-reads-r-then-k-then-lists": (FILE, SWEPT, Rules(sweeper_order="RBL")),
    "a-sweeper-lists-then-reads-k-then-r-as-one-ls-remote-does": (FILE, SWEPT, Rules(sweeper_order="LBR")),
    "a-sweeper-reads-k-then-lists-then-reads-r": (FILE, SWEPT, Rules(sweeper_order="BLR")),
    "a-sweeper-reads-k-then-r-then-lists": (FILE, SWEPT, Rules(sweeper_order="BRL")),
    "names-of-files-lack-the-repository": (
        FILE,
        World((trains(1), trains(1, run=1), X, XF), FORK),
        Rules(name_repository=False),
    ),
    "identities-are-known-from-the-upload-s-answer-only": (COPY, PUBLISHES, Rules(declare=False)),
    "taking-over-inherits-nothing": (COPY, World((publishes(A), trains(0), X), deaths=2), Rules(inherit=False)),
    "r-goes-before-the-copies": (COPY, PUBLISHES, Rules(r_last=False)),
    "what-is-listed-is-not-uploaded-two-runs-on-drive": (BRANCH, DRIVE, Rules(own_copy=False)),
    "what-is-listed-is-not-uploaded-a-fork-on-drive": (BRANCH, FORKED, Rules(own_copy=False)),
    "what-an-old-listing-shows-is-not-uploaded-and-verified-by-it": (
        BRANCH,
        replace(DRIVE, lag=True),
        Rules(own_copy=False, verify_identity=False),
    ),
    "a-copy-that-another-r-declares-is-relied-on": (BRANCH, KEYS, Rules(wait=False)),
    "what-is-relied-on-is-not-verified": (BRANCH, KEYS, Rules(verify=False)),
    "a-copy-is-overwritten": (BRANCH, KEYS, Rules(create_only=False)),
    "objects-are-stored-in-any-order": ("NOBODY MOVES", KEYS_TWO, Rules(in_order=False)),
    "a-fork-deletes-its-own-one-copy-a-key": (BRANCH, FORKED_KEYS, replace(UNNAMED, marks=False)),
    "a-session-that-was-taken-over-deletes-its-late-copy": (BRANCH, KEYS_ALIVE, replace(UNNAMED, leave_late=False)),
    "a-roll-back-does-not-look-at-branches": (BRANCH, World((publishes(A), H, X)), UNNAMED),
    "r-is-not-read-before-each-deletion": (BRANCH, KEYS_ALIVE_TWICE, replace(UNNAMED, reread=False)),
    "a-session-that-takes-r-leaves-the-stop": (
        "A STOP OUTLIVES ITS SESSION",
        STOPPED_TWICE,
        Rules(take_ends_stop=False),
    ),
    "the-commit-push-leaves-the-stop": ("A STOP STAYS", STOPPED, Rules(commit_ends_stop=False)),
    "a-recoverer-deletes-the-stop": ("A STOP STAYS, OR IS LOST", STOPPED, Rules(recovery_keeps_stop=False)),
    "a-run-is-discarded-without-its-checkpoint": (FILE, World((trains(1, A), D, X)), Rules(discard_in_push=False)),
    "a-sweep-deletes-what-k-names": (FILE, TWO, Rules(keep_named_file=False)),
    "a-rejected-push-counts-as-not-happened": (
        BRANCH,
        replace(PUBLISHES, echo=True),
        replace(UNNAMED, doubt_rejection=False),
    ),
}

LIMITS = {
    "a-sleep-between-look-and-deletion-taken-over-alive-one-copy-a-key": (
        BRANCH,
        replace(KEYS_ALIVE, actors=(publishes(A), publishes(A, run=1), publishes(A, run=1), X), gap=True),
    ),
    "a-person-s-dvc-push-before-and-git-push-after-a-roll-back": (
        BRANCH,
        World((publishes(A), H, X), two_step_person=True),
    ),
    "an-upload-that-arrives-after-its-run-has-given-it-up": (COPY, replace(PUBLISHES, late_uploads=True)),
}

LARGE = {
    *("two-sessions-with-two-lost-answers", "two-sessions-the-first-is-taken-over-alive"),
    *("two-sessions-both-finish-the-run-taken-over-alive-deaths", "a-sweeper-next-to-two-sessions"),
    *("a-sweeper-next-to-a-run-that-finishes", "a-person-deletes-the-checkpoint-branch"),
    *("three-runs-publish-one-content-on-drive", "recoverers-taken-over-alive-one-copy-a-key"),
    *("a-fork-taken-over-alive-on-drive", "a-fence-of-its-own-taken-over-alive", "files-listed-under-r-a-sweeper"),
    *("files-listed-under-r-taken-over-alive", "files-listed-under-r-a-person-deletes-the-checkpoint-branch"),
    *("r-is-not-read-before-each-deletion", "a-sleep-between-look-and-deletion-taken-over-alive-one-copy-a-key"),
}
"""Worlds that take more than a second each."""


def cases(worlds: Mapping[str, tuple[Any, ...]]) -> list[Any]:
    """Return pytest's parameters; large worlds are slow."""
    return [pytest.param(*case, id=name, marks=[pytest.mark.slow] * (name in LARGE)) for name, case in worlds.items()]


@pytest.mark.parametrize(("world", "rules"), cases(HOLDS))
def test_no_order_of_steps_and_deaths_breaks_a_promise(world: World, rules: Rules) -> None:
    """Every reachable state is checked."""
    found = explore(world, rules)
    assert not found.broken, f"\n{found}"


@pytest.mark.parametrize(("promise", "world", "rules"), cases(BREAKS))
def test_some_order_breaks_a_promise_when(promise: str, world: World, rules: Rules) -> None:
    """Each rule prevents some damage: `pytest -s` prints the shortest history of it."""
    found = explore(world, rules)
    assert found.broken.startswith(promise), found
    print(found)


@pytest.mark.parametrize(("promise", "world"), cases(LIMITS))
def test_what_the_rules_do_not_prevent(promise: str, world: World) -> None:
    """Known limits, which are not promised; the claim fails once a rule prevents one, and moves up then."""
    found = explore(world, Rules())
    assert found.broken.startswith(promise), found
    print(found)


def test_the_search_finds_each_broken_promise() -> None:
    """A branch without its object, a checkpoint without its file, a stranger's copy that is gone, and what stays."""
    model = Model(World((publishes(A), X), strangers=B), Rules())
    start = model.start()
    idle = start._replace(sessions=(start.sessions[0]._replace(at="dead"), start.sessions[1]))
    assert not model.broken(start)
    assert not model.broken_at_rest(idle)
    assert model.broken(start._replace(branches=1)) == "A BRANCH LACKS AN OBJECT"
    assert model.broken(start._replace(runs=(Run(k=1),))) == "A CHECKPOINT LACKS ITS FILE"
    assert model.broken(start._replace(store=(0, 0))) == "A STRANGER'S COPY IS LOST"
    assert model.broken_at_rest(start) == "NOBODY MOVES"
    assert model.broken_at_rest(idle._replace(runs=(Run(Record(0)),))) == "R STAYS"
    assert model.broken_at_rest(idle._replace(files=1)) == "A FILE STAYS"
    assert model.broken_at_rest(idle._replace(store=(1, STRANGER))) == "A COPY STAYS"
