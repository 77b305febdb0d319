"""What a sweep on Kaggle decides from what it has read, and that no order of its steps breaks a promise."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta

import pytest
from sweep_model import NOW, VALUES, World, explore

from lib.kaggle.kernel import Quota
from lib.sweep.plan import GRACE, Claim, Decision, Room, Seen, plan

OLD = NOW - timedelta(seconds=GRACE + 1)
PUSHED = Claim(commit="a", experiment=VALUES, epoch=3, branch="b1", version=4, pushed=5, time=OLD)
LOST = PUSHED.model_copy(update={"pushed": 0})
NEW = Seen("a", VALUES)
ENDED = replace(NEW, claim=PUSHED, version=5, sessions={5: "error", 4: "complete"}, epoch=3, is_held=True)
OTHER = {**VALUES, "training": {"epochs": 9, "image_size": 64}}


def young(seen: Seen) -> Seen:
    """Return the same run, claimed a moment ago."""
    assert seen.claim
    return replace(seen, claim=seen.claim.model_copy(update={"time": NOW}))


def claimed(seen: Seen, **values: object) -> Seen:
    """Return the run with another claim."""
    assert seen.claim
    return replace(seen, claim=seen.claim.model_copy(update=values))


def decide(seen: Seen, *, resume: bool = False) -> Decision:
    """Return the decision for one run, with room for it on Kaggle."""
    return plan({"run": seen}, Room(), NOW, {"run"} if resume else ())["run"]


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param(replace(NEW, finished="b2"), "finished: b2", id="published"),
        pytest.param(replace(ENDED, finished="b2", sessions={5: "running"}), "finished: b2", id="not ended yet"),
        pytest.param(replace(ENDED, version=None), "waiting: Kaggle does not report", id="Kaggle is silent"),
        pytest.param(replace(ENDED, sessions={5: "queued"}), "running: version 5 is queued", id="queued"),
        pytest.param(replace(ENDED, sessions={5: "error", 4: "running"}), "running: version 4", id="an older version"),
        pytest.param(replace(NEW, sessions={1: "running"}, version=1), "running: version 1", id="pushed by hand"),
        pytest.param(young(claimed(ENDED, version=5, pushed=0)), "running: it is being pushed", id="claimed just now"),
        pytest.param(young(replace(ENDED, sessions={4: "complete"})), "running: it is being started", id="no session"),
        pytest.param(young(replace(ENDED, version=4, sessions={})), "running: it is being started", id="an old answer"),
        pytest.param(replace(ENDED, version=0, sessions={}), "stopped: its kernel was deleted", id="deleted"),
        pytest.param(replace(ENDED, state="stopped", branch="b2"), "stopped: .* as b2", id="stopped"),
        pytest.param(replace(NEW, state="stopped", branch="b2"), "stopped: .* as b2", id="stopped, never claimed"),
        pytest.param(replace(ENDED, epoch=4, is_asked_to_stop=True), "stopped: it was asked", id="asked"),
        pytest.param(replace(NEW, is_held=True), "waiting: a session that is not on Kaggle", id="held elsewhere"),
        pytest.param(claimed(ENDED, pushes=2), "failed: its last 2 sessions", id="twice in vain"),
    ],
)  # fmt: skip
def test_a_run_that_is_not_pushed(seen: Seen, expected: str) -> None:
    """Each has its reason."""
    decision = decide(seen)
    kind, _, note = expected.partition(": ")
    assert decision.kind == kind
    assert re.match(note, decision.note), decision.note
    assert decision.claim is None


@pytest.mark.parametrize(
    ("seen", "pushes", "commit"),
    [
        pytest.param(NEW, 1, "a", id="never pushed"),
        pytest.param(replace(NEW, version=2, sessions={2: "error"}, is_held=True), 1, "a", id="pushed by hand before"),
        pytest.param(replace(ENDED, epoch=4), 1, "a", id="it completed an epoch"),
        pytest.param(claimed(replace(ENDED, epoch=4), pushes=2), 1, "a", id="it did so the second time"),
        pytest.param(ENDED, 2, "a", id="it completed none"),
        pytest.param(replace(ENDED, sessions={}), 2, "a", id="saved without a run"),
        pytest.param(replace(ENDED, state="interrupted", branch="b2", epoch=4), 1, "a", id="interrupted"),
        pytest.param(replace(ENDED, state="failed", branch="b2"), 2, "a", id="failed"),
        pytest.param(replace(ENDED, state="stopped", branch="b1", epoch=4), 1, "a", id="resumed after it was stopped"),
        pytest.param(replace(ENDED, claim=LOST, version=4), 1, "a", id="claimed, not pushed"),
        pytest.param(claimed(replace(ENDED, claim=LOST, version=4), pushes=2), 2, "a", id="claimed again, not pushed"),
        pytest.param(replace(ENDED, claim=LOST), 2, "a", id="pushed, not noted"),
        pytest.param(replace(ENDED, commit="b"), 2, "a", id="the branch moved on"),
        pytest.param(claimed(replace(ENDED, commit="b"), pushes=2), 1, "b", id="new code after it failed"),
        pytest.param(replace(ENDED, commit="b", experiment=OTHER), 1, "b", id="another training of this name"),
    ],
)  # fmt: skip
def test_a_run_that_is_pushed(seen: Seen, pushes: int, commit: str) -> None:
    """With its own commit while its training goes on, and the count of pushes in vain."""
    decision = decide(seen)
    assert decision.kind == "push", decision
    made = decision.claim
    assert made is not None
    assert (made.pushes, made.commit, made.epoch, made.branch) == (pushes, commit, seen.epoch, seen.branch)
    assert (made.version, made.pushed) == (seen.version, 0)


@pytest.mark.parametrize(
    "seen",
    [
        claimed(ENDED, pushes=2),
        replace(ENDED, state="stopped", branch="b2"),
        replace(ENDED, version=0, sessions={}),
        replace(ENDED, is_asked_to_stop=True),
    ],
)
def test_an_ended_run_is_resumed_on_request(seen: Seen) -> None:
    """With its own commit, and a new count; a session that is under way is not touched."""
    decision = decide(seen, resume=True)
    assert decision.claim is not None
    assert (decision.kind, decision.claim.pushes, decision.claim.commit) == ("push", 1, "a")
    assert decide(replace(seen, version=6, sessions={6: "running"}), resume=True).kind == "running"


def test_keys_without_effect_and_new_keys_make_no_other_training() -> None:
    """A longer session, another description and a key that the older code lacks are the same training."""
    own = {"description": "old", "session": {"max_hours": 11}, "export": []}
    claim = PUSHED.model_copy(update={"experiment": {**VALUES, **own}})
    assert claim.is_of({**VALUES, "description": "new", "session": {"max_hours": 3}, "export": ["onnx"]})
    assert claim.is_of({**VALUES, "training": {"epochs": 2, "image_size": 64, "new": True}})
    assert not claim.is_of(OTHER)


def test_no_more_sessions_than_slots() -> None:
    """Every active version counts, and a push under way; the first runs come first."""
    two = replace(NEW, version=3, sessions={2: "running", 3: "queued"})
    pushing = young(claimed(ENDED, version=5, pushed=0))
    for busy, slots, expected in ((two, 2, ""), (two, 3, "1"), (pushing, 2, "1"), (pushing, 3, "12"), (two, 1, "")):
        found = plan({"busy": busy, "1": NEW, "2": NEW}, Room(slots), NOW)
        assert "".join(name for name in "12" if found[name].kind == "push") == expected
        waiting = [each for name, each in found.items() if name not in ("busy", *expected)]
        assert all(each == Decision("waiting", "for one of the GPU sessions to end") for each in waiting)


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        (Room(quota=Quota(0.0, 30.0, "Saturday")), "GPU hours: 0.00h of 30.00h left until Saturday"),
        (Room(quota=Quota(0.4, 30.0, "Saturday")), "left until Saturday, and a session needs about 0.5 h"),
        (Room(quota=Quota(0.5, 30.0, "Saturday")), ""),
        (Room(secrets="blobs_received"), "for the secrets dataset (blobs_received)"),
    ],
)
def test_a_push_waits_for_hours_and_secrets(room: Room, expected: str) -> None:
    """What it waits for is said, with the time at which the hours are renewed."""
    decision = plan({"run": replace(NEW, needed=0.5)}, room, NOW)["run"]
    assert decision.kind == ("waiting" if expected else "push")
    assert expected in decision.note


# ── every order of steps ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "world",
    [
        World(deaths=0, losses=0),
        World(deaths=0, losses=0, deletions=1),
        World(sweeps=1, epochs=2),
        pytest.param(World(losses=0), marks=pytest.mark.slow),
        pytest.param(World(deaths=0), marks=pytest.mark.slow),
        pytest.param(World(epochs=2, deaths=0, losses=0), marks=pytest.mark.slow),
    ],
)
def test_no_order_of_steps_breaks_a_promise(world: World) -> None:
    """Two sweeps at once, a death between any two steps, a refused push and a lost answer: nothing is pushed twice."""
    states, history = explore(world)
    assert history == []
    assert states > 50


@pytest.mark.parametrize(
    ("world", "expected"),
    [
        (World(swaps=False), "two sessions at a time"),
        (World(order="KCG"), "two sessions at a time"),
        (World(order="CGK"), "a finished run is pushed"),
    ],
)
def test_each_rule_is_needed(world: World, expected: str) -> None:
    """Without compare-and-swap, or read in another order, some order of steps breaks a promise."""
    assert explore(world)[1][-1] == expected
