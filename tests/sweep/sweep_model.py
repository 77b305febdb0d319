"""Explore claim, push and death of several sweeps of one run on Kaggle: every order of steps, by breadth-first search.

The decisions are those of `lib.sweep.plan`, the code itself. A sweep reads the claim, Kaggle and the branches in the
world's order, decides, moves the claim by compare-and-swap, pushes, and notes the version in its claim. It gives a run
up only if the claim is still the one that it has read. It may die between any two steps, and a push may be refused, or
its answer be lost. A session starts, completes epochs, publishes after the last one, and may end at any time.

Guarantees: if `explore` finds nothing, no order of these steps breaks a promise of `plan`. Cannot: show what a sweep
does that sleeps between its claim and its push for longer than `GRACE`; a claim ages only while none does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import NamedTuple

from lib.sweep.plan import GRACE, TRIES, Claim, Decision, Room, Seen, plan

NOW = datetime(2026, 11, 28, tzinfo=UTC)
VALUES = {"module": "detection", "name": "exp", "training": {"epochs": 2, "image_size": 64}}


@dataclass(frozen=True)
class World:
    """The sweeps, and what may happen to them."""

    sweeps: int = 2
    epochs: int = 1
    deaths: int = 1
    losses: int = 1  # pushes that are refused, or whose answer is lost
    deletions: int = 0  # of the kernel, by hand
    order: str = "CKG"  # in which a sweep reads the Claim, Kaggle and the Git branches
    swaps: bool = True  # a claim is compared and swapped, not written


class Mark(NamedTuple):
    """A claim; `serial` makes each another one, of those that anybody remembers."""

    serial: int
    pushes: int
    epoch: int
    version: int
    pushed: int = 0
    aged: bool = False  # `GRACE` has passed


class Sweep(NamedTuple):
    """The next step of a sweep, and what it has read."""

    at: str = ""
    claim: Mark | None = None
    kaggle: tuple[int, str] = (0, "")
    git: tuple[int, bool] = (0, False)
    made: Mark | None = None


class State(NamedTuple):
    """Both services, the sweeps, and what may still go wrong."""

    claim: Mark | None
    version: int  # the kernel's newest
    session: str  # of that version: starting, running, ended; "" without a version
    epoch: int
    finished: bool
    vain: int  # accepted pushes since an epoch was completed
    sweeps: tuple[Sweep, ...]
    deaths: int
    losses: int
    deletions: int


class BrokenError(Exception):
    """A promise is broken."""


@cache
def decide(claim: Mark | None, kaggle: tuple[int, str], git: tuple[int, bool]) -> tuple[str, Mark | None]:
    """Return what `plan` decides from what a sweep has read, and the claim to make, without its serial number."""
    version, session = kaggle
    found = None
    if claim is not None:
        found = Claim(
            commit="c", experiment=VALUES, pushes=claim.pushes, epoch=claim.epoch, version=claim.version,
            pushed=claim.pushed, time=NOW - timedelta(seconds=2 * GRACE if claim.aged else 0),
        )  # fmt: skip
    states = {"running": "running", "ended": "error"}
    seen = Seen(
        "c", VALUES, found, finished="b" if git[1] else "", epoch=git[0], version=version,
        sessions={version: states[session]} if session in states else {},
    )  # fmt: skip
    decision: Decision = plan({"": seen}, Room(), NOW)[""]
    made = decision.claim
    return decision.kind, Mark(0, made.pushes, made.epoch, made.version) if made else None


def steps(world: World, state: State) -> Iterator[tuple[str, State]]:
    """Yield every next step and the state after it. Raises `BrokenError`."""
    yield from _session_steps(world, state)
    claim = state.claim
    # a push begins and ends, and its session starts, before its claim is old
    if claim and not claim.aged and state.session != "starting" and not any(s.at == "push" for s in state.sweeps):
        yield "the claim ages", state._replace(claim=claim._replace(aged=True))
    if state.deletions and state.version:
        # its versions begin again at 1, so that one push may not be recognised: from here on they are not counted
        rest = state._replace(version=0, session="", vain=-99, deletions=state.deletions - 1)
        yield "the kernel is deleted", rest
    for number, sweep in enumerate(state.sweeps):
        others = (*state.sweeps[:number], *state.sweeps[number + 1 :])
        for what, next_step, after in _sweep_steps(world, state, sweep):
            yield f"sweep {number} {what}", after._replace(sweeps=tuple(sorted((next_step, *others), key=hash)))


def _session_steps(world: World, state: State) -> Iterator[tuple[str, State]]:
    if state.session == "starting":
        yield "the session starts", state._replace(session="running")
    if state.session == "running":
        if state.epoch < world.epochs:
            yield "an epoch is completed", state._replace(epoch=state.epoch + 1, vain=0)
        elif not state.finished:
            yield "the run is published", state._replace(finished=True)
        yield "the session ends", state._replace(session="ended")


def _sweep_steps(world: World, state: State, sweep: Sweep) -> Iterator[tuple[str, Sweep, State]]:
    """Yield each next step of a sweep, its step after that, and the state without it."""
    at = sweep.at
    if at and state.deaths:
        yield "dies", Sweep(), state._replace(deaths=state.deaths - 1)
    if at == "claim":
        if world.swaps and _bare(state.claim) != _bare(sweep.claim):
            yield "loses the claim", Sweep(), state
        else:
            yield "claims", sweep._replace(at="push"), state._replace(claim=sweep.made)
    elif at == "push":
        yield from _pushes(state, sweep)
    elif at in ("note", "take back"):
        mine = state.claim if state.claim and sweep.made and state.claim.serial == sweep.made.serial else None
        if mine is None:
            yield "finds its claim moved", Sweep(), state
        elif at == "note":
            noted = mine._replace(serial=_new_serial(state), pushed=mine.version + 1)
            yield "notes the version", Sweep(), state._replace(claim=noted)
        else:
            old = sweep.claim and sweep.claim._replace(serial=_new_serial(state))
            yield "takes the claim back", Sweep(), state._replace(claim=old)
    else:
        yield _reads(state, sweep, world.order)


def _reads(state: State, sweep: Sweep, order: str) -> tuple[str, Sweep, State]:
    """Return the step after a sweep's next reading; after the last one it decides."""
    at = order[: len(sweep.at) + 1]
    if at[-1] == "C":
        after = sweep._replace(at=at, claim=state.claim)
    elif at[-1] == "G":
        after = sweep._replace(at=at, git=(state.epoch, state.finished))
    elif state.session == "running":
        after = Sweep()  # whatever it reads then, it pushes nothing
    else:
        after = sweep._replace(at=at, kaggle=(state.version, state.session))
    if after.at == order:
        kind, made = decide(after.claim, after.kaggle, after.git)
        if kind == "failed" and _bare(state.claim) == _bare(after.claim) and 0 < state.vain < TRIES:
            raise BrokenError("a run is given up after fewer pushes")
        new = made and made._replace(serial=_new_serial(state))
        after = Sweep("claim", after.claim, made=new) if new else Sweep()
    return f"reads {at[-1]}", after, state


def _pushes(state: State, sweep: Sweep) -> Iterator[tuple[str, Sweep, State]]:
    if state.session in ("starting", "running"):
        raise BrokenError("two sessions at a time")
    if state.finished:
        raise BrokenError("a finished run is pushed")
    if state.vain >= TRIES:
        raise BrokenError("a push too many")
    pushed = state._replace(version=state.version + 1, session="starting", vain=state.vain + 1)
    yield "pushes", sweep._replace(at="note", claim=None), pushed
    if state.losses:
        yield "pushes without an answer", Sweep(), pushed._replace(losses=state.losses - 1)
        yield "is refused", sweep._replace(at="take back"), state._replace(losses=state.losses - 1)


def _new_serial(state: State) -> int:
    marks = [state.claim, *(mark for sweep in state.sweeps for mark in (sweep.claim, sweep.made))]
    return 1 + max(mark.serial if mark else 0 for mark in marks)


def _bare(claim: Mark | None) -> Mark | None:
    """Return a claim as Git compares it: age is no part of it."""
    return claim and claim._replace(aged=False)


def explore(world: World) -> tuple[int, list[str]]:
    """Return the number of states, and a shortest history that breaks a promise; empty if there is none."""
    sweeps = (Sweep(),) * world.sweeps
    start = State(None, 0, "", 0, False, 0, sweeps, world.deaths, world.losses, world.deletions)
    came: dict[State, tuple[State, str] | None] = {start: None}
    level = [start]
    while level:
        below = []
        for state in level:
            try:
                _require_end(state)
                for what, after in steps(world, state):
                    if world.swaps:
                        after = _without_losers(after)  # noqa: PLW2901
                    if after not in came:
                        came[after] = state, what
                        below.append(after)
            except BrokenError as broken:
                return len(came), [*_history(came, state), str(broken)]
        level = below
    return len(came), []


def _without_losers(state: State) -> State:
    """Return the state with each sweep at its start that cannot win its claim any more: the claim never returns.

    Only that there is none returns, if a first push was refused.
    """
    kept = (
        sweep if sweep.at in ("", "push", "note", "take back") or not (sweep.claim or state.losses == 0)
        or _bare(sweep.claim) == _bare(state.claim) else Sweep() for sweep in state.sweeps
    )  # fmt: skip
    return state._replace(sweeps=tuple(sorted(kept, key=hash)))


def _history(came: dict[State, tuple[State, str] | None], state: State) -> list[str]:
    before = came[state]
    return [*_history(came, before[0]), before[1]] if before else []


def _require_end(state: State) -> None:
    """Check that a run at rest does not wait for ever. Raises `BrokenError`."""
    if any(sweep.at for sweep in state.sweeps) or state.session in ("starting", "running"):
        return
    if state.claim is None or state.claim.aged:
        kind, _ = decide(state.claim, (state.version, state.session), (state.epoch, state.finished))
        if kind in ("running", "waiting"):
            raise BrokenError("a run waits for nothing")
