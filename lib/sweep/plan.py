"""Decide what each run of a sweep on Kaggle needs next; a pure function of what was read.

Before a run is pushed to Kaggle, its claim is moved on the Git remote by compare-and-swap (`claims.py`), and stays
afterwards. So what a sweep may do follows from the claim, Kaggle's answer, the published branches and the checkpoint.

Guarantees, if they are read in this order (claim, Kaggle, branches): of any number of sweeps, one pushes a run at a
time; a run is pushed again only when its session has ended, and never when it is finished; a session that completed no
epoch is repeated once. Cannot: see a push that reaches Kaggle more than `GRACE` seconds after its claim, because the
machine slept; such a second session finds the run held, and ends. `tests/sweep/sweep_model.py` explores every order of
these steps and every death.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lib.experiment.load import flat
from lib.experiment.schema import ExperimentValues
from lib.kaggle.kernel import ACTIVE, Quota

GRACE = 900.0  # seconds; a push begins and ends within this time after its claim, also if two clocks differ by minutes
TRIES = 2  # pushes in a row whose sessions complete no epoch
NO_EFFECT = ("session.", "description", "export", "hardware.prepare_images")
"""Keys of an experiment that have no effect on the model."""


class Claim(BaseModel):
    """The claim of a run, `refs/pushes/<run>`: the last push to Kaggle, announced before it happens."""

    model_config = ConfigDict(frozen=True)

    commit: str
    """The commit that is trained; the next session continues it, even if the branch has moved on."""
    experiment: ExperimentValues
    pushes: int = 1
    """Number of pushes in a row, this one included, since a session last completed an epoch."""
    epoch: int = 0
    """Completed epochs of the checkpoint before the push."""
    branch: str = ""
    """The newest published branch of the run before the push."""
    version: int = 0
    """The kernel's newest version before the push."""
    pushed: int = 0
    """The version that the push made; 0: not known."""
    time: datetime = Field(default_factory=lambda: datetime.now(UTC))
    nonce: str = ""
    """Makes every claim a different commit: of two sweeps that move a claim alike, one fails."""

    def is_of(self, experiment: Mapping[str, Any]) -> bool:
        """Return whether these are the values of the claimed training, in the keys that both of them have."""
        mine, ours = dict(flat(self.experiment)), dict(flat(experiment))
        return all(mine[key] == ours[key] for key in mine.keys() & ours.keys() if not key.startswith(NO_EFFECT))


@dataclass(frozen=True)
class Seen:
    """What was read of a run: first its claim, then Kaggle, then branches (a session publishes before it ends)."""

    commit: str
    """The commit of this sweep."""
    experiment: Mapping[str, Any]
    claim: Claim | None = None
    claim_commit: str | None = None
    """The commit in which the claim was read."""
    branch: str = ""
    """The newest published branch of the run, of any commit and values."""
    state: str = ""
    """The state of that branch's record."""
    finished: str = ""
    """The newest branch of a finished run with the commit and the values of its claim or of this sweep."""
    epoch: int = 0
    """Completed epochs of the checkpoint."""
    is_asked_to_stop: bool = False
    """Whether a person has asked it to stop, and no session has taken it since."""
    is_held: bool = False
    """Whether a session, alive or dead, holds the run."""
    version: int | None = 0
    """The kernel's newest version; None: Kaggle gives no answer."""
    sessions: Mapping[int, str] = field(default_factory=dict)
    """Kaggle's states of the kernel's newest versions; none for a version without a session."""
    needed: float = 0.0
    """GPU hours without which a session would leave nothing; 0: not known."""

    @property
    def active(self) -> dict[int, str]:
        """Return the versions whose sessions are queued or running, and their states."""
        return {version: ACTIVE[state] for version, state in self.sessions.items() if state in ACTIVE}


@dataclass(frozen=True)
class Room:
    """What Kaggle has room for."""

    slots: int = 2
    """GPU sessions at a time."""
    quota: Quota | None = None
    """The GPU hours of the week; None: not known."""
    secrets: str = ""
    """Why the secrets dataset cannot be attached yet: mostly, Kaggle's state of it; empty if it can."""


@dataclass(frozen=True)
class Decision:
    """What becomes of a run, and why; `claim` is to be made before it is pushed."""

    kind: Literal["finished", "stopped", "failed", "running", "waiting", "push"]
    note: str = ""
    claim: Claim | None = None


def plan(seen: Mapping[str, Seen], room: Room, now: datetime, resume: Collection[str] = ()) -> dict[str, Decision]:
    """Return the decision for each run, in their order; `resume` names ended runs that are to be pushed once more."""
    decisions = {name: _decide(each, now, is_resumed=name in resume) for name, each in seen.items()}
    pushing = sum(decisions[name].kind == "running" and not each.active for name, each in seen.items())
    free = room.slots - pushing - sum(len(each.active) for each in seen.values())
    for name, decision in decisions.items():
        if decision.kind == "push":
            reason = _no_room(room, free, seen[name].needed)
            decisions[name] = Decision("waiting", reason) if reason else decision
            free -= not reason
    return decisions


def _no_room(room: Room, free: int, needed: float) -> str:
    """Return why a run cannot be pushed now; empty if it can."""
    if room.secrets:
        return f"for the secrets dataset ({room.secrets})"
    if room.quota and (room.quota.left <= 0 or room.quota.left < needed):
        need = f", and a session needs about {needed:.1f} h" if needed else ""
        return f"GPU hours: {room.quota}{need}"
    return "" if free > 0 else "for one of the GPU sessions to end"


def _decide(seen: Seen, now: datetime, *, is_resumed: bool) -> Decision:  # noqa: PLR0911  a rule, an answer
    """Return the decision for a run, as if Kaggle had room for any number of sessions."""
    if seen.finished:
        return Decision("finished", seen.finished)
    if seen.version is None:
        return Decision("waiting", "Kaggle does not report the state of its kernel")
    if seen.active:
        return Decision("running", ", ".join(f"version {each} is {seen.active[each]}" for each in sorted(seen.active)))
    if seen.claim and (now - seen.claim.time).total_seconds() < GRACE:
        if not seen.claim.pushed and seen.version == seen.claim.version:
            return Decision("running", "it is being pushed")
        if max(seen.version, seen.claim.pushed) not in seen.sessions:
            return Decision("running", "it is being started")
    claim = seen.claim if seen.claim and seen.claim.is_of(seen.experiment) else None
    if not is_resumed and (why := _stopped(claim, seen)):
        return Decision("stopped", f"{why}; --resume goes on with it")
    if claim:
        return _after(claim, seen, is_resumed=is_resumed)
    if seen.is_held and seen.version == 0:
        return Decision("waiting", "a session that is not on Kaggle holds it (`python -m lib status`)")
    return _push(seen, None, 1)


def _stopped(claim: Claim | None, seen: Seen) -> str:
    """Return how a person has stopped a run that has no session on Kaggle; empty if nobody has."""
    if seen.state == "stopped" and seen.branch != (claim.branch if claim else ""):
        return f"stopped by hand, published as {seen.branch}"
    if claim and (seen.version or 0) < max(claim.pushed, claim.version):
        return "its kernel was deleted on Kaggle"
    return "it was asked to stop" if seen.is_asked_to_stop else ""


def _after(claim: Claim, seen: Seen, *, is_resumed: bool) -> Decision:
    """Return the decision for a claimed run that has no session on Kaggle."""
    if seen.epoch > claim.epoch or is_resumed:
        return _push(seen, claim, 1)
    if not claim.pushed and seen.version == claim.version:
        return _push(seen, claim, claim.pushes)  # the sweep that claimed it died before its push
    if claim.pushes < TRIES:
        return _push(seen, claim, claim.pushes + 1)
    if claim.commit != seen.commit:  # the code or the values were changed, maybe because of this failure
        return _push(seen, None, 1)
    return Decision("failed", f"its last {TRIES} sessions on Kaggle completed no epoch")


def _push(seen: Seen, claim: Claim | None, pushes: int) -> Decision:
    """Return the decision to push the run of a claim, or that of this sweep without one."""
    made = Claim(
        commit=claim.commit if claim else seen.commit,
        experiment=claim.experiment if claim else dict(seen.experiment),
        pushes=pushes,
        epoch=seen.epoch,
        branch=seen.branch,
        version=seen.version or 0,
    )
    return Decision("push", claim=made)
