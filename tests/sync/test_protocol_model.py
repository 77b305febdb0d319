"""Claims on the protocol's rules: with all of them no order of steps breaks a promise, without any one some order does.

A failure prints a shortest history; `protocol_model.py` names the function behind each step.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from protocol_model import Actor, Model, Rules, World, explore

A, B, C = 1, 2, 4  # objects; a sum is a set of them


def publishes(objects: int) -> Actor:
    """Return a run that publishes these objects."""
    return Actor("P", objects)


def moves_the_checkpoint(objects: int, supersedes: int) -> Actor:
    """Return a run that moves the checkpoint branch to these objects and deletes those that only the old one named."""
    return Actor("C", objects, supersedes)


RECOVERS = Actor("R")

TWO_SHARE_ONE = World((publishes(A | B), publishes(B | C), RECOVERS))
TWO_AND_TWO = World((publishes(A | B), publishes(B), RECOVERS, RECOVERS))
THREE_RUNS = World((publishes(A), publishes(A), publishes(A), RECOVERS))
THREE_SHARE = World((publishes(A | B), publishes(A), publishes(B), RECOVERS))
CHECKPOINT = World((moves_the_checkpoint(B, A), publishes(A), RECOVERS), checkpoint=A)
CHECKPOINT_AND_TWO = World((moves_the_checkpoint(B, A), publishes(A), publishes(A), RECOVERS), checkpoint=A)
CHECKPOINT_KEEPS = World((moves_the_checkpoint(B | C, A), publishes(A | B), RECOVERS, RECOVERS), checkpoint=A | B)
CHECKPOINT_SHARES = World((moves_the_checkpoint(B, A), publishes(A | B), RECOVERS, RECOVERS), checkpoint=A)
LIVING_RECOVERED = replace(TWO_SHARE_ONE, leftovers=True)
LIVING_RECOVERED_TWICE = replace(TWO_AND_TWO, leftovers=True, gap=True)
TWO_CHECKPOINTS = World((moves_the_checkpoint(B, A), moves_the_checkpoint(C, A), RECOVERS), checkpoint=A)
NOBODY_DIES = World((publishes(A | B), RECOVERS), mortal=False)
LISTING = World((publishes(A | B), publishes(A | B), RECOVERS), listing=B)

HOLDS = {
    "two-runs-share-one-of-their-objects": (TWO_SHARE_ONE, Rules()),
    "two-runs-and-two-recoverers": (TWO_AND_TWO, Rules()),
    "two-runs-on-a-store-with-twins": (replace(TWO_AND_TWO, twins=True), Rules()),
    "three-runs-of-one-object": (THREE_RUNS, Rules()),
    "three-runs-of-one-object-with-twins": (replace(THREE_RUNS, twins=True), Rules()),
    "three-runs-and-two-recoverers": (replace(THREE_RUNS, actors=(*THREE_RUNS.actors, RECOVERS)), Rules()),
    "three-runs-that-share": (THREE_SHARE, Rules()),
    "a-stranger-s-object": (replace(TWO_SHARE_ONE, strangers=A), Rules()),
    "a-stranger-s-object-that-runs-share": (replace(TWO_SHARE_ONE, strangers=B), Rules()),
    "a-stranger-s-object-with-twins": (replace(THREE_RUNS, strangers=A, twins=True), Rules()),
    "a-directory-and-its-file": (LISTING, Rules()),
    "a-checkpoint-moves": (CHECKPOINT_AND_TWO, Rules()),
    "a-checkpoint-moves-with-twins": (replace(CHECKPOINT_AND_TWO, twins=True), Rules()),
    "a-checkpoint-moves-and-keeps-an-object": (CHECKPOINT_KEEPS, Rules()),
    "a-checkpoint-moves-to-what-a-run-publishes": (CHECKPOINT_SHARES, Rules()),
    "two-sessions-move-one-checkpoint": (TWO_CHECKPOINTS, Rules()),
    "a-store-that-lies": (replace(TWO_SHARE_ONE, lies=True), Rules()),
    "a-run-recovered-while-it-lives-deletes-its-late-uploads": (NOBODY_DIES, Rules(lease_owner=False)),
    "the-branches-of-runs-recovered-while-they-live": (LIVING_RECOVERED, Rules(lease_owner=False)),
    "the-branches-of-runs-recovered-while-they-live-twice": (LIVING_RECOVERED_TWICE, Rules(lease_owner=False)),
    "a-live-rollback-is-taken-over-and-reads-its-mark-again": (TWO_AND_TWO, Rules(lease_undoer=False)),
    "a-live-rollback-is-taken-over-with-twins": (replace(TWO_AND_TWO, twins=True), Rules(lease_undoer=False)),
    "a-gap-between-the-mark-and-the-deletion": (replace(TWO_AND_TWO, gap=True), Rules()),
    "verifying-is-enough-without-probing-again": (TWO_SHARE_ONE, Rules(probe_again=False)),
    "leases-are-enough-without-reading-the-mark-again": (TWO_AND_TWO, Rules(reread=False)),
}

BREAKS = {
    "nothing-is-adopted": ("NOBODY NAMES", THREE_RUNS, Rules(adopt=False)),
    "superseded-objects-are-not-declared": ("NOBODY NAMES", CHECKPOINT_AND_TWO, Rules(adopt_superseded=False)),
    "what-a-checkpoint-names-counts-as-before": ("NOBODY NAMES", CHECKPOINT_AND_TWO, Rules(adopt_checkpoint=False)),
    "intents-are-adopted-before-branches": ("NOBODY NAMES", CHECKPOINT_AND_TWO, Rules(adopt_branches_first=False)),
    "no-run-listens": ("A BRANCH LACKS", TWO_SHARE_ONE, Rules(listen=False)),
    "no-run-listens-to-clean-ups": ("A BRANCH LACKS", CHECKPOINT, Rules(listen_to_cleaning=False)),
    "no-run-probes-again-after-declaring": ("A BRANCH LACKS", TWO_SHARE_ONE, Rules(probe_again=False, verify=False)),
    "no-run-verifies-its-uploads": ("A BRANCH LACKS", replace(TWO_SHARE_ONE, lies=True), Rules(verify=False)),
    "a-branch-is-moved-from-any-commit": ("NOBODY NAMES", TWO_CHECKPOINTS, Rules(branch_as_read=False)),
    "late-uploads-are-left": ("NOBODY NAMES", NOBODY_DIES, Rules(lease_owner=False, undo_late_uploads=False)),
    "the-mark-does-not-fence": ("A BRANCH LACKS", TWO_SHARE_ONE, Rules(fence=False)),
    "a-live-owner-is-recovered": ("NOBODY NAMES", TWO_SHARE_ONE, Rules(lease_owner=False)),
    "branches-are-read-before-intents": ("A BRANCH LACKS", TWO_SHARE_ONE, Rules(look_intents_first=False)),
    "objects-that-branches-name-are-deleted": ("A BRANCH LACKS", TWO_SHARE_ONE, Rules(keep_named=False)),
    "objects-that-another-run-announced-are-deleted": ("A BRANCH LACKS", TWO_SHARE_ONE, Rules(keep_announced=False)),
    "identities-are-ignored": ("NOBODY NAMES", THREE_RUNS, Rules(identities=False)),
    "the-intent-is-deleted-first": ("NOBODY NAMES", TWO_SHARE_ONE, Rules(intent_last=False)),
    "a-rollback-that-was-taken-over-does-not-read-its-mark-again": (
        "A BRANCH LACKS",
        TWO_AND_TWO,
        Rules(lease_undoer=False, reread=False),
    ),
    "a-live-rollback-is-taken-over-in-the-gap": (
        "A BRANCH LACKS",
        replace(TWO_AND_TWO, gap=True),
        Rules(lease_undoer=False),
    ),
    "an-owner-takes-over-a-live-rollback-of-its-run": (
        "A BRANCH LACKS",
        replace(TWO_SHARE_ONE, leftovers=True, gap=True),
        Rules(lease_owner=False, owner_waits=False),
    ),
    "a-listing-is-uploaded-before-its-files": ("A LISTING LACKS", LISTING, Rules(listing_uploaded_last=False)),
    "a-listing-is-deleted-after-its-files": ("A LISTING LACKS", LISTING, Rules(listing_deleted_first=False)),
}

LIMITS = {
    "a-listing-outlives-its-file-while-two-runs-that-share-the-file-are-rolled-back": replace(
        LISTING, actors=(publishes(A | B), publishes(A), RECOVERS, RECOVERS)
    ),
    "a-checkpoint-that-moves-deletes-a-stranger-s-object-of-the-same-content": replace(
        CHECKPOINT, actors=(moves_the_checkpoint(B, A), RECOVERS), strangers=A
    ),
}


LARGE = {"a-live-rollback-is-taken-over-with-twins", "a-live-rollback-is-taken-over-and-reads-its-mark-again",
         "three-runs-and-two-recoverers", "three-runs-that-share"}  # fmt: skip
"""Worlds that take several seconds each."""


@pytest.mark.parametrize(
    ("world", "rules"),
    [pytest.param(*held, id=name, marks=[pytest.mark.slow] * (name in LARGE)) for name, held in HOLDS.items()],
)
def test_no_order_of_steps_and_deaths_breaks_a_promise(world: World, rules: Rules) -> None:
    """Every reachable state is checked."""
    found = explore(world, rules)
    assert not found.broken, f"\n{found}"


@pytest.mark.parametrize(("promise", "world", "rules"), BREAKS.values(), ids=BREAKS)
def test_some_order_breaks_a_promise_when(promise: str, world: World, rules: Rules) -> None:
    """Each rule prevents some damage: `pytest -s` prints the shortest history of it."""
    found = explore(world, rules)
    assert found.broken.startswith(promise), found
    print(found)


@pytest.mark.parametrize("world", LIMITS.values(), ids=LIMITS)
def test_what_the_rules_do_not_prevent(world: World) -> None:
    """Known limits, which are not promised; the claim fails once a rule prevents one, and moves up then."""
    found = explore(world)
    assert found.history, found
    print(found)


def test_the_search_finds_a_broken_promise() -> None:
    """A branch without its object, a stranger's object that is gone, an object that nothing names."""
    model = Model(World((publishes(A), RECOVERS), strangers=B), Rules())
    start = model.start()
    assert not model.broken(start)
    branch, gone, left = bytearray(start), bytearray(start), bytearray(start)
    branch[model.count] = 1
    gone[1] = 0
    left[0] = 1
    assert model.broken(bytes(branch)) == "A BRANCH LACKS a"
    assert model.broken(bytes(gone)) == "A STRANGER LOST b"
    assert model.broken(bytes(left)) == "NOBODY NAMES a"
