"""Explore the sync protocol: every interleaving and every death of a few publications, by breadth-first search.

Guarantees: if `explore` finds nothing, no order of the steps below breaks a promise of `lib.sync` in that world; if it
finds something, its history is a shortest one. Cannot: cover more actors or objects than the world has, nor check the
code; the table names the function behind each step, and `test_sync_stateful.py` runs these functions.

step                              function                                   requests
probes                            _Publishing._plan                          Objects.look
reads the checkpoint branches     _Publishing._plan                          Refs.list_refs, Refs.named_objects
reads the other intents           _Publishing._plan                          Refs.read_intents
declares                          Lease.__enter__                            Refs.push
hears nobody deleting             _Publishing._listen                        Refs.read_intents
probes again                      _Publishing._upload                        Objects.look
uploads                           _Publishing._send                          Objects.upload
verifies                          _Publishing._verify                        Objects.look
COMMITS, or its push is late      Lease.end                                  Refs.push
marks its own                     _Publishing._roll_back_remotes             Refs.read_intents
declares anew …                   _Publishing._roll_back_late_uploads        Objects.look, Refs.push
marks                             Remotes.recover, Lease.__enter__           Refs.push
looks at intents, at branches     Remotes.recover                            Refs.read_intents, Refs.named_objects
looks at an object                Remotes._delete_new                        Objects.look
reads its mark again, deletes     Lease.reread, Remotes._delete_new          Refs.list_refs, Objects.delete
removes the intent                Lease.end                                  Refs.push

A run of kind C moves the checkpoint branch: a publication that `supersedes` it, and cleans up after its commit. It has
read the branch before anything else happened.

Simplifications. Reading an intent and marking it is one step: a mark on a stale commit is rejected and changes nothing.
A lease expires exactly when its holder is dead; switching off `lease_owner` or `lease_undoer` lets the lease of a live
holder expire (`recover --older-than 0`, a machine that slept). Reading the mark again and deleting is one step unless
the world has a `gap`. An actor that gives up during a rollback counts as dead. A run is tried once: its retry is
another run. An upload happens when its answer arrives; only the commit push may arrive later. A run that others have
rolled back knows its own uploads by their identities; the code uses the copies that were added since its second probe.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

# What an actor is about to do. Until it has declared, it has changed no remote.
PROBE, ADOPT_FIRST, ADOPT_SECOND, DECLARE, LISTEN, PROBE_AGAIN, UPLOAD, VERIFY, COMMIT, WANT_UNDO = range(10)
LOOK_FIRST, LOOK_SECOND, LOOK_OBJECT, REREAD, DELETE, UNMARK, IDLE, GONE = range(10, 18)
AT = (
    *("probing", "adopting", "adopting", "declaring", "listening", "probing again", "uploading", "verifying"),
    *("committing", "undoing", "looking at the intents", "looking at the branches", "looking at an object"),
    *("reading its mark again", "deleting", "removing the intent", "", ""),
)

# An intent's state; `LATE` is added while a commit push that its sender has given up may still arrive.
NONE, UPLOADING, ABORTING, CLEANING, LATE = 0, 1, 2, 3, 4

# Identities are bits: that of the actor which stored the copy, of the old checkpoint, or of a stranger.
OLD, STRANGER = 1 << 5, 1 << 6
OLD_BRANCH = 1 << 7  # in addition to one bit for each actor's branch

NAMES = "abcd"  # the objects; a set of objects is a number with one bit for each


@dataclass(frozen=True)
class Actor:
    """A run that publishes objects (P), a run that moves the checkpoint branch to them (C), or a recoverer (R)."""

    kind: Literal["P", "C", "R"]
    objects: int = 0
    supersedes: int = 0


@dataclass(frozen=True)
class World:
    """The initial state that is explored, and what may happen in it."""

    actors: tuple[Actor, ...]
    twins: bool = False
    """Whether the store keeps two copies of one path side by side, as Drive does."""
    strangers: int = 0
    """Objects that a stranger stored before, without a branch."""
    checkpoint: int = 0
    """Objects that the checkpoint branch names at first."""
    listing: int = 0
    """The object that is the `.dir` listing of all others; 0 if there is none."""
    gap: bool = False
    """Whether others may act between reading the mark again and the deletion."""
    lies: bool = False
    """Whether the store may report success for an upload and store nothing."""
    mortal: bool = True
    """Whether actors may die."""
    leftovers: bool = False
    """Whether unnamed objects are tolerated: those that a run leaves after it was recovered while it lived."""


@dataclass(frozen=True)
class Rules:
    """The protocol's rules; each may be switched off to find out what it prevents."""

    adopt: bool = True
    adopt_superseded: bool = True
    adopt_checkpoint: bool = True
    adopt_branches_first: bool = True
    listen: bool = True
    listen_to_cleaning: bool = True
    probe_again: bool = True
    verify: bool = True
    fence: bool = True
    branch_as_read: bool = True
    lease_owner: bool = True
    lease_undoer: bool = True
    owner_waits: bool = True
    undo_late_uploads: bool = True
    look_intents_first: bool = True
    keep_named: bool = True
    keep_announced: bool = True
    identities: bool = True
    reread: bool = True
    intent_last: bool = True
    listing_uploaded_last: bool = True
    listing_deleted_first: bool = True


@dataclass(frozen=True)
class Found:
    """The result of a search: the number of states, and the broken promise, if any, with a shortest history."""

    states: int
    broken: str = ""
    history: tuple[str, ...] = ()

    def __str__(self) -> str:
        told = [f"{number:3}. {step}" for number, step in enumerate(self.history, 1)]
        return "\n".join([f"{self.broken or 'holds'} ({self.states} states)", *told])


State = bytes
"""One byte each: the identities under every object's path; the visible branches; for every run its intent (state,
holder, the identities `before` of every object); for every actor its next step, the run that it rolls back, two
remembered sets and its current object."""

Step = tuple[State, int, str]
"""The next state, the actor that makes the step, and the step's name."""


class Model:
    """The steps that a world allows under some rules."""

    def __init__(self, world: World, rules: Rules) -> None:
        self.world, self.rules, self.actors = world, rules, world.actors
        every = world.strangers | world.checkpoint
        for actor in self.actors:
            every |= actor.objects | actor.supersedes
        self.count = every.bit_length()
        self.runs = [k for k, actor in enumerate(self.actors) if actor.kind != "R"]
        width = 2 + self.count
        self.slot = {k: self.count + 1 + width * number for number, k in enumerate(self.runs)}
        after = self.count + 1 + width * len(self.runs)
        self.seat = [after + 5 * k for k in range(len(self.actors))]
        self.members = [[o for o in range(self.count) if mask >> o & 1] for mask in range(1 << self.count)]
        first = self.members[world.listing]  # the order of deletion: a listing before its files
        last = [o for o in range(self.count) if o not in first]
        self.order = first + last if rules.listing_deleted_first else last + first
        named = {OLD_BRANCH: world.checkpoint} | {1 << k: self.actors[k].objects for k in self.runs}
        self.named = [self._union(named, branches) for branches in range(256)]
        self.moved = OLD_BRANCH | sum(1 << k for k in self.runs if self.actors[k].kind == "C")

    @staticmethod
    def _union(named: dict[int, int], branches: int) -> int:
        found = 0
        for bit, objects in named.items():
            found |= objects if branches & bit else 0
        return found

    def start(self) -> State:
        """Return the state before any step."""
        state = bytearray(self.seat[-1] + 5)
        for o in range(self.count):
            state[o] = STRANGER if self.world.strangers >> o & 1 else OLD if self.world.checkpoint >> o & 1 else 0
        state[self.count] = OLD_BRANCH if self.world.checkpoint else 0
        for k, actor in enumerate(self.actors):
            state[self.seat[k]] = IDLE if actor.kind == "R" else PROBE
        return bytes(state)

    # ── promises ───────────────────────────────────────────────────────────────────────────────────────────────────

    def broken(self, state: State) -> str:
        """Return the promise that the state breaks; empty if it breaks none."""
        there = sum(1 << o for o in range(self.count) if state[o])
        strangers = sum(1 << o for o in range(self.count) if state[o] & STRANGER)
        named, listing = self.named[state[self.count]], self.world.listing
        faults = [
            ("A BRANCH LACKS", named & ~there),
            ("A STRANGER LOST", self.world.strangers & ~strangers),
            ("A LISTING LACKS", (1 << self.count) - 1 & ~there if listing & there else 0),
            ("NOBODY NAMES", there & ~named & ~strangers if self._is_at_rest(state) else 0),
        ]
        return next((f"{fault} {NAMES[self.members[objects][0]]}" for fault, objects in faults if objects), "")

    def _is_at_rest(self, state: State) -> bool:
        """Return whether there is no intent and every actor has ended, or has not declared yet."""
        if self.world.leftovers or any(state[self.slot[k]] for k in self.runs):
            return False
        return not any(LISTEN <= state[seat] < IDLE for seat in self.seat)

    def is_stuck(self, state: State, steps: list[Step]) -> bool:
        """Return whether an intent stays, or an actor waits, although a recoverer lives and no step is possible."""
        recoverers = [self.seat[k] for k, actor in enumerate(self.actors) if actor.kind == "R"]
        if not any(state[seat] == IDLE for seat in recoverers):
            return False
        if any(not verb.startswith("dies") for _, _, verb in steps):
            return False
        return any(state[self.slot[k]] or state[self.seat[k]] != GONE for k in self.runs)

    # ── steps ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def steps(self, state: State) -> Iterator[Step]:
        """Yield every step that may happen next."""
        for k in self.runs:
            if state[self.slot[k]] & LATE and self._is_branch_as_read(state, k):
                yield self._committed(bytearray(state), k), k, "'s late push arrives: COMMITS"
        for k in range(len(self.actors)):
            at = state[self.seat[k]]
            if LISTEN <= at < IDLE and self.world.mortal:
                yield self._left(bytearray(state), k, GONE), k, f"dies before {AT[at]}"
            yield from self._next(state, k, at)

    def _next(self, state: State, k: int, at: int) -> Iterator[Step]:
        if at < LISTEN:
            yield self._preparing(state, k, at)
        elif at < VERIFY:
            yield from self._sending(state, k, self.actors[k], at)
        elif at < LOOK_FIRST:
            yield from self._ending(state, k, at)
        elif at < REREAD:
            yield self._looking(state, k, at)
        elif at < IDLE:
            yield self._deleting(state, k, at)
        elif at == IDLE:
            for run in self.runs:
                if state[self.slot[run]] and self._may_settle(state, k, run):
                    yield self._marked(state, k, run), k, f"marks {self.name(run)}"

    def name(self, k: int) -> str:
        """Return the name of an actor."""
        return f"{self.actors[k].kind}{k}"

    def _preparing(self, state: State, k: int, at: int) -> Step:
        rules, slot, seat = self.rules, self.slot[k], self.seat[k]
        new = bytearray(state)
        new[seat] = at + 1
        if at == PROBE:
            for o in self.members[self.actors[k].objects]:
                new[slot + 2 + o] = state[o]
                new[seat + 3] |= 1 << o if state[o] else 0
            return bytes(new), k, "probes"
        if at == DECLARE:
            new[slot], new[slot + 1] = UPLOADING, k
            return bytes(new), k, "declares"
        if (at == ADOPT_FIRST) == rules.adopt_branches_first:
            for o in self.members[self.named[state[self.count] & self.moved] if rules.adopt_checkpoint else 0]:
                new[slot + 2 + o] = 0
            return bytes(new), k, "reads the checkpoint branches"
        for run in self.runs:
            if run != k and state[self.slot[run]]:
                for o in self.members[self.actors[run].objects if rules.adopt else 0]:
                    new[slot + 2 + o] &= state[self.slot[run] + 2 + o]
                for o in self.members[self.actors[run].supersedes if rules.adopt_superseded else 0]:
                    new[slot + 2 + o] = 0
        return bytes(new), k, "reads the other intents"

    def _sending(self, state: State, k: int, actor: Actor, at: int) -> Iterator[Step]:
        rules, seat = self.rules, self.seat[k]
        new = bytearray(state)
        if at == LISTEN:
            if not rules.listen or not any(self._is_deleting(state, run, actor.objects) for run in self.runs):
                new[seat] = PROBE_AGAIN
                yield bytes(new), k, "hears nobody deleting"
        elif at == PROBE_AGAIN:
            there = sum(1 << o for o in self.members[actor.objects] if state[o])
            new[seat + 3] = actor.objects & ~(there if rules.probe_again else state[seat + 3])
            new[seat] = UPLOAD if new[seat + 3] else VERIFY
            yield bytes(new), k, "probes again"
        else:
            yield from self._uploading(state, k, state[seat + 3])

    def _ending(self, state: State, k: int, at: int) -> Iterator[Step]:
        rules, slot, seat = self.rules, self.slot[k], self.seat[k]
        new = bytearray(state)
        if at == VERIFY:
            whole = not rules.verify or all(state[o] for o in self.members[self.actors[k].objects])
            new[seat] = COMMIT if whole else WANT_UNDO
            yield bytes(new), k, "verifies" if whole else "finds something missing"
        elif at == COMMIT and not self._may_commit(state, k):
            new[seat] = WANT_UNDO
            yield bytes(new), k, "is refused"
        elif at == COMMIT:
            yield self._committed(bytearray(state), k), k, "COMMITS"
            new[seat] = WANT_UNDO
            new[slot] |= LATE
            yield bytes(new), k, "gets no answer to its commit push"
        elif not state[slot] & 3:
            late = any(state[o] >> k & 1 for o in self.members[self.actors[k].objects])
            if late and rules.undo_late_uploads and not state[self.count] >> k & 1:
                yield self._declared_anew(new, k), k, "declares anew to undo its late uploads"
            else:
                yield self._left(new, k, GONE), k, "finds its intent settled"
        elif self._may_settle(state, k, k):
            yield self._marked(state, k, k), k, "marks its own"

    def _may_commit(self, state: State, k: int) -> bool:
        """Return whether the commit push is accepted: the intent is as we wrote it, every branch is as it was read."""
        return self._is_branch_as_read(state, k) and (not self.rules.fence or state[self.slot[k]] & 3 == UPLOADING)

    def _is_branch_as_read(self, state: State, k: int) -> bool:
        if self.actors[k].kind != "C" or not self.rules.branch_as_read:
            return True
        return state[self.count] & self.moved == (OLD_BRANCH if self.world.checkpoint else 0)

    def _declared_anew(self, new: bytearray, k: int) -> State:
        """Declare and mark an intent for the uploads since others rolled the run back."""
        slot, seat = self.slot[k], self.seat[k]
        new[slot], new[slot + 1] = ABORTING, k
        for o in self.members[self.actors[k].objects]:
            new[slot + 2 + o] = new[o] & ~(1 << k)
        new[seat : seat + 5] = bytes((LOOK_FIRST, k, 0, 0, 0))
        return bytes(new)

    def _is_deleting(self, state: State, run: int, objects: int) -> bool:
        phase, other = state[self.slot[run]] & 3, self.actors[run]
        if phase == CLEANING:
            return self.rules.listen_to_cleaning and bool((other.objects | other.supersedes) & objects)
        return phase == ABORTING and bool(other.objects & objects)

    def _uploading(self, state: State, k: int, missing: int) -> Iterator[Step]:
        listing = self.world.listing if self.rules.listing_uploaded_last else 0
        for o in self.members[missing & ~listing or missing]:
            new = bytearray(state)
            new[o] = (state[o] if self.world.twins else 0) | 1 << k
            new[self.seat[k] + 3] = missing & ~(1 << o)
            new[self.seat[k]] = UPLOAD if new[self.seat[k] + 3] else VERIFY
            yield self._tidied(new), k, f"uploads {NAMES[o]}"
            if self.world.lies:
                new = bytearray(state)
                new[self.seat[k] + 3] = missing & ~(1 << o)
                new[self.seat[k]] = UPLOAD if new[self.seat[k] + 3] else VERIFY
                yield bytes(new), k, f"believes that {NAMES[o]} is uploaded"
        new = bytearray(state)
        new[self.seat[k]], new[self.seat[k] + 3] = WANT_UNDO, 0
        yield bytes(new), k, "fails to upload"

    def _committed(self, new: bytearray, k: int) -> State:
        """Make the branch visible and delete the intent, or set it to cleaning, in one push."""
        slot, seat = self.slot[k], self.seat[k]
        if self.actors[k].kind == "C":
            new[self.count] &= ~self.moved & 255
            new[slot], new[slot + 1] = CLEANING, k
            if new[seat] == COMMIT:
                new[seat], new[seat + 1] = LOOK_FIRST, k
        else:
            self._clear(new, k)
            if new[seat] == COMMIT:
                new[seat] = GONE
        new[self.count] |= 1 << k
        return bytes(new)

    def _may_settle(self, state: State, k: int, run: int) -> bool:
        """Return whether the intent is ours, or its holder's lease has expired (`Remotes.may_recover`)."""
        phase, holder = state[self.slot[run]] & 3, state[self.slot[run] + 1]
        if holder == k or state[self.seat[holder]] in (GONE, IDLE):
            return True
        if phase == UPLOADING:
            return not self.rules.lease_owner
        return not self.rules.lease_undoer or (k == run and not self.rules.owner_waits)

    def _marked(self, state: State, k: int, run: int) -> State:
        """Take the intent over: it stays `CLEANING` after a commit, and becomes `ABORTING` before it."""
        new, slot, seat = bytearray(state), self.slot[run], self.seat[k]
        late = 0 if self.rules.fence else state[slot] & LATE
        new[slot] = (CLEANING if state[slot] & 3 == CLEANING else ABORTING) | late
        new[slot + 1] = k
        new[seat], new[seat + 1], new[seat + 2], new[seat + 3] = LOOK_FIRST, run, 0, 0
        return bytes(new)

    def _looking(self, state: State, k: int, at: int) -> Step:
        rules, seat = self.rules, self.seat[k]
        run, o = state[seat + 1], state[seat + 4]
        new = bytearray(state)
        if at == LOOK_OBJECT:
            slot = self.slot[run]
            before = state[slot + 2 + o] if state[slot] & 3 != CLEANING else 0
            new[seat + 3] = state[o] & ~before if rules.identities or not before else 0
            new[seat] = REREAD
            if not new[seat + 3]:
                self._go_on(new, k, run, o)
            return bytes(new), k, f"looks at {NAMES[o]}"
        if (at == LOOK_FIRST) == rules.look_intents_first:
            for other in self.runs:
                if other != run and state[self.slot[other]] & 3 == UPLOADING and rules.keep_announced:
                    new[seat + 2] |= self.actors[other].objects
            verb = "looks at the other intents"
        else:
            new[seat + 2] |= self.named[state[self.count]] if rules.keep_named else 0
            verb = "looks at the branches"
        new[seat] = LOOK_SECOND if at == LOOK_FIRST else UNMARK
        if at == LOOK_SECOND and rules.intent_last:
            self._go_on(new, k, run, -1)
        return bytes(new), k, verb

    def _deleting(self, state: State, k: int, at: int) -> Step:
        rules, seat = self.rules, self.seat[k]
        run, o = state[seat + 1], state[seat + 4]
        slot = self.slot[run]
        new = bytearray(state)
        ours = state[slot] & 3 != NONE and state[slot + 1] == k
        if not ours and (at == UNMARK or (at == REREAD and rules.reread and rules.intent_last)):
            return self._left(new, k), k, "finds that its mark was taken over"
        if at == REREAD and self.world.gap:
            new[seat] = DELETE
            return bytes(new), k, "reads its mark again"
        if at in (REREAD, DELETE):
            new[o] = state[o] & ~state[seat + 3]
            new[seat + 3] = 0
            self._go_on(new, k, run, o)
            return self._tidied(new), k, f"deletes {NAMES[o]}"
        if rules.intent_last:
            self._clear(new, run)
            return self._left(new, k), k, "removes the intent"
        new[slot] &= LATE
        self._go_on(new, k, run, -1)
        return bytes(new), k, "removes the intent"

    def _go_on(self, new: bytearray, k: int, run: int, done: int) -> None:
        """Go to the next object that nothing else names."""
        seat, actor = self.seat[k], self.actors[run]
        objects = actor.supersedes if new[self.slot[run]] & 3 == CLEANING else actor.objects
        rest = self.order[self.order.index(done) + 1 :] if done >= 0 else self.order
        for o in rest:
            if objects >> o & 1 and not new[seat + 2] >> o & 1:
                new[seat], new[seat + 4] = LOOK_OBJECT, o
                return
        new[seat], new[seat + 4] = UNMARK, 0
        if not self.rules.intent_last:
            self._left(new, k)

    def _clear(self, new: bytearray, run: int) -> None:
        slot = self.slot[run]
        new[slot : slot + 2 + self.count] = bytes(2 + self.count)

    def _left(self, new: bytearray, k: int, at: int | None = None) -> State:
        """Make an actor end, or die, and forget its memory."""
        seat = self.seat[k]
        new[seat : seat + 5] = bytes((IDLE if at is None and self.actors[k].kind == "R" else GONE, 0, 0, 0, 0))
        if self.actors[k].kind != "R" and not new[self.slot[k]]:
            self._clear(new, k)
        return bytes(new)

    def _tidied(self, new: bytearray) -> State:
        """Forget identities that are gone: they never return, so that two states that differ only in them are one."""
        if self.rules.identities:
            for run in self.runs:
                slot = self.slot[run] + 2
                for o in range(self.count):
                    new[slot + o] &= new[o]
        return bytes(new)


def explore(world: World, rules: Rules = Rules(), limit: int = 2_000_000) -> Found:
    """Search for a shortest history that breaks a promise."""
    model = Model(world, rules)
    start = model.start()
    came_from: dict[State, State] = {start: start}
    todo = deque([start])
    while todo:
        state = todo.popleft()
        broken = model.broken(state)
        steps = list(model.steps(state))
        if not broken and model.is_stuck(state, steps):
            broken = "NOBODY MOVES"
        if broken:
            return Found(len(came_from), broken, _history(model, came_from, state))
        for after, _, _ in steps:
            if after not in came_from:
                came_from[after] = state
                todo.append(after)
        if len(came_from) > limit:
            return Found(len(came_from), f"MORE THAN {limit} STATES")
    return Found(len(came_from))


def _history(model: Model, came_from: dict[State, State], state: State) -> tuple[str, ...]:
    told = []
    while came_from[state] != state:
        before = came_from[state]
        k, verb = next((k, verb) for after, k, verb in model.steps(before) if after == state)
        told.append(f"{model.name(k)}{'' if verb.startswith(chr(39)) else ' '}{verb}")
        state = before
    return tuple(reversed(told))
