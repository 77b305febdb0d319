"""Explore the sync protocol: every interleaving and every death of a few sessions, by breadth-first search.

Guarantees: if `explore` finds nothing, no order of the steps below breaks a promise of the protocol in that world, and
from each state all can come to rest; if it finds something, its history is a shortest one. Cannot: cover more actors,
runs or objects than the world has, nor check the code.

The world is one or more Git remotes, one DVC remote, and for each run R (lock and journal), K (checkpoint branch), B
(finished branch), an ask and a stop. The rules' numbers are those of docs/sync-protocol.md. The actors:
  S  a session: takes R or asks and takes over, sweeps, uploads checkpoints, publishes objects, or releases R
  X  a recoverer: a session that trains nothing, and begins anew whenever something dead is left
  W  a sweeper that never holds R: lists files, reads R, reads K, deletes
  H  a person with plain DVC, who uses any copy that is there, else stores one, and pushes a branch
  U  a person who deletes K by hand
  P  a person who stops a run: reads R, creates the stop, and deletes it if R is gone then
Every push compares and swaps R, and moves K and B with it. A push without an answer has happened, happens later, or
never happens. Every actor may pause for any time between two steps.

Simplifications. One file a checkpoint. A session's retry is another session. Reading R and creating the ask is one
step, and so are looking at a copy and deleting it, unless the world has a `gap`. Answers are lost of uploads, of
checkpoint pushes and of commit pushes; a push of R alone changes nothing else, and reading R decides. Both repositories
have marked the store before anything else. A lease expires on the dead only, unless the world is `hasty`. No `git push
--mirror`, no sessions of protocol 1, no two threads of one session.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

FILES = 3  # file names of a session
STRANGER = 1 << 12  # a stranger's identity; that of an actor's copies is `1 << number`
ENDS = {"done", "held", "dead"}


@dataclass(frozen=True)
class Actor:
    """An actor; X and W look after all runs of their run's repository."""

    kind: Literal["S", "X", "W", "H", "U", "P"]
    run: int = 0
    checkpoints: int = 0
    objects: int = 0  # a set: one bit for each
    discards: bool = False  # P wants nothing to be published


@dataclass(frozen=True)
class World:
    """The actors, and what may happen to them."""

    actors: tuple[Actor, ...]
    runs: tuple[tuple[int, int], ...] = ((0, 0),)  # the repository and the name of each
    twins: bool = True  # copies are side by side, as on Drive; else one copy a key
    strangers: int = 0  # objects of which a stranger has stored a copy
    lag: bool = False  # listings may be old
    hasty: int = 0  # leases expire on living sessions (1), on living recoverers, too (2)
    deaths: int = 1
    losses: int = 1  # lost answers and failed uploads
    gap: bool = False  # one copy a key: others may act between looking at a copy and deleting it
    leftovers: bool = False  # copies that no branch names are tolerated
    echo: bool = False  # a commit push that happened may be reported as rejected: Git's client sent it twice
    two_step_person: bool = False  # H's `dvc push` and `git push` are two steps
    late_uploads: bool = False  # an upload without an answer may arrive later


@dataclass(frozen=True)
class Rules:
    """The protocol's rules; each may be dropped to find out what it prevents."""

    hold_in_push: bool = True  # rule 1: pushes of checkpoints and commits move R
    fence_doubt: bool = True  # rule 2: after a lost answer R moves before anything is deleted
    lazy_fence: bool = True  # rule 4: after a checkpoint push in doubt the next push is the fence
    kept_until: Literal["R moved", "a push", "K was read"] = "R moved"  # when its files may go, with a lazy fence
    kept_if_named: bool = True  # rule 4: they stay if K, read after that push, names them
    doubt_rejection: bool = True  # rule 2: a rejected push is in doubt, too
    order: str = "LTB"  # rule 4: a session Lists, Takes R, reads R, reads the Branch K
    sweeper_order: str = "LRB"  # rule 4: the order of W
    keep_named_file: bool = True  # rule 4: a sweep leaves the file that K names
    name_repository: bool = True  # names of files contain the repository's identity
    delete_after: bool = True  # superseded files are deleted after the push
    declare: bool = True  # identities are in R before the copy exists
    inherit: bool = True  # taking over inherits what is to be rolled back
    r_last: bool = True  # rule 3: R goes after the copies
    keep_named: bool = True  # rule 6: a roll back leaves the copies that a branch names
    own_copy: bool = True  # Drive: no upload is skipped because a copy is listed
    verify: bool = True  # rule 5: a copy that is relied on is looked at again before the commit
    verify_identity: bool = True  # a copy is verified by its identity, not by a listing
    wait: bool = True  # rule 5: wait while another R declares the copy that is there
    create_only: bool = True  # rule 5: never overwrite
    in_order: bool = True  # rule 5: objects are stored in order of name
    marks: bool = True  # rule 5: two repositories: nothing under objects' paths is deleted
    leave_late: bool = True  # rule 5: a session that was taken over leaves its copies
    reread: bool = True  # rule 5: R is read again right before each deletion
    take_ends_stop: bool = True  # rule 7: a session that takes R deletes the stop
    commit_ends_stop: bool = True  # rule 7: so does the commit push
    recovery_keeps_stop: bool = True  # rule 7: a recoverer that takes R over leaves it
    discard_in_push: bool = True  # a run that is discarded deletes K and R in one push
    never_delete: bool = False  # one copy a key: nothing under objects' paths is ever deleted


class Record(NamedTuple):
    """The content of R."""

    holder: int
    phase: Literal["trains", "publishes", "rolls back"] = "trains"  # its identities are declared except in the first
    undo: int = 0  # identities that it inherited and has not deleted yet


class Run(NamedTuple):
    """The refs of a run on its Git remote."""

    r: Record | None = None
    k: int = 0  # the file that K names; 0 without K
    asked: bool = False
    stop: int = 0  # 1 + the session that held R when it was created; 0 without a stop
    wanted: bool = False  # whether P was told that it has asked, and no session has published or begun since


class Push(NamedTuple):
    """A push without an answer."""

    kind: Literal["checkpoint", "commit"]
    file: int
    base: int  # the file that K must name; what R must be is that nobody has moved it
    landed: bool = False


class Session(NamedTuple):
    """The next step of an actor, and what it remembers. Files and identities are bits."""

    at: str
    run: int
    attempt: int = 0  # number of its next checkpoint; of a sweeper: 1 once it has begun
    listed: int = 0  # files that may be waste: as listed, later those of pushes in doubt and what these supersede
    base: int = 0  # K as read
    inherited: int = 0  # identities to be rolled back after taking over
    copies: tuple[int, ...] = ()  # for each object the identity that it stored or relies on
    doubts: tuple[Push, ...] = ()
    note: tuple[Any, ...] = ()  # for the next step alone


class State(NamedTuple):
    """The remotes, the actors, and what may still go wrong."""

    runs: tuple[Run, ...]
    branches: int  # finished branches that exist, by actor
    store: tuple[int, ...]  # the identities of each object's copies
    files: int
    sessions: tuple[Session, ...]
    deaths: int
    losses: int
    ghosts: int = 0  # objects that an old listing may show
    late: tuple[tuple[int, int], ...] = ()  # actor and object of uploads that may still arrive


Moves = Iterator[tuple[str, State]]  # what the actor does, and the state afterwards


@dataclass(frozen=True)
class Found:
    """The result of a search: the number of states, and the broken promise, if any, with a shortest history."""

    states: int
    broken: str = ""
    history: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{number:3}. {step}" for number, step in enumerate(self.history, 1)]
        return "\n".join([f"{self.broken or 'holds'} ({self.states} states)", *lines])


class Model:
    """The steps that a world allows under some rules, and the promises."""

    def __init__(self, world: World, rules: Rules) -> None:
        self.world, self.rules = world, rules
        actors, runs = world.actors, world.runs
        self.objects = range(max(world.strangers, *(actor.objects for actor in actors)).bit_length())
        self.repositories = len({repository for repository, _ in runs})
        self.own = [((1 << FILES) - 1) << k * FILES for k in range(len(actors))]  # the files of each session
        self.files = [0] * len(runs)  # the files of each run
        for number, (repository, run) in enumerate(runs):
            for k, actor in enumerate(actors):
                other, name = runs[actor.run]
                if actor.kind == "S" and name == run and (other == repository or not rules.name_repository):
                    self.files[number] |= self.own[k]
        self.peers = [sum(1 << j for j, b in enumerate(actors) if runs[b.run][0] == runs[a.run][0]) for a in actors]
        steps = {"L": "list_files", "T": "look", "R": "read_r", "B": "read_k"}
        self.first = steps[rules.order[0]]
        self.after = {one: steps.get(two, "sweep") for one, two in zip(rules.order, f"{rules.order[1:]} ", strict=True)}

    def start(self) -> State:
        """Return the first state."""
        begin = {"S": "start", "X": "idle", "W": "idle", "H": "push_by_hand", "U": "delete_by_hand", "P": "ask_to_stop"}
        sessions = tuple(Session(begin[actor.kind], actor.run) for actor in self.world.actors)
        store = tuple(STRANGER if self.world.strangers >> o & 1 else 0 for o in self.objects)
        return State((Run(),) * len(self.world.runs), 0, store, 0, sessions, self.world.deaths, self.world.losses)

    def named(self, branches: int) -> int:
        """Return the objects that these branches name."""
        objects = 0
        for k in bits(branches):
            objects |= self.world.actors[k].objects
        return objects

    def broken(self, state: State) -> str:
        """Return the promise that is broken in a state, whatever happens next; empty if none is."""
        named = self.named(state.branches) if state.branches else 0
        for o, copies in enumerate(state.store):
            if named >> o & 1 and not copies:
                return "A BRANCH LACKS AN OBJECT"
            if self.world.strangers >> o & 1 and not copies & STRANGER:
                return "A STRANGER'S COPY IS LOST"
        for run in state.runs:
            if run.k & ~state.files:
                return "A CHECKPOINT LACKS ITS FILE"
        return ""

    def broken_at_rest(self, state: State) -> str:
        """Return the promise that is broken in a state where nothing but deaths can happen; empty if none is."""
        runs, actors = self.world.runs, list(zip(self.world.actors, state.sessions, strict=True))
        recovered = {runs[actor.run][0] for actor, me in actors if actor.kind == "X" and me.at == "idle"}
        if any(runs[a.run][0] in recovered and a.kind in "SH" and me.at not in ENDS for a, me in actors):
            return "NOBODY MOVES"
        if any(run.r is None and run.wanted != bool(run.stop) for run in state.runs):
            return "A STOP STAYS, OR IS LOST"
        for (repository, _), files, run in zip(runs, self.files, state.runs, strict=True):
            if repository in recovered and run.r:
                return "R STAYS"
            if repository in recovered and state.files & files & ~run.k and not self.world.lag:
                return "A FILE STAYS"
        named = self.named(state.branches)
        left = any(copies & ~STRANGER and not named >> o & 1 for o, copies in enumerate(state.store))
        if left and len(recovered) == self.repositories and not self.world.leftovers:
            return "A COPY STAYS"
        return ""

    def steps(self, state: State) -> Iterator[tuple[int, str, State]]:
        """Yield every step that may happen next: the actor, what it does, the state afterwards."""
        for k, me in enumerate(state.sessions):
            if me.at in ENDS and not me.doubts and not state.late:
                continue
            turn = Steps(self, state, k)
            for verb, new in turn.arrivals():
                yield k, verb, new
            if me.at in ENDS:
                continue
            if state.deaths and me.at not in {"start", "idle"} and turn.actor.kind not in "HUP":
                dead = Session("dead", turn.actor.run, doubts=tuple(push for push in me.doubts if not push.landed))
                yield k, f"dies at {me.at}", turn.remembering(dead, state)._replace(deaths=state.deaths - 1)
            if turn.held and turn.landed and me.at in {"push_checkpoint", "declare", "release"}:
                yield k, *turn.learns()  # its push is rejected: R is not what it expects
                continue
            for verb, new in STEPS[me.at](turn):
                yield k, verb, new


class Turn:
    """One actor's view of a state, and the states that it can reach from there."""

    def __init__(self, model: Model, state: State, k: int) -> None:
        self.model, self.world, self.rules = model, model.world, model.rules
        self.state, self.k, self.me, self.actor = state, k, state.sessions[k], model.world.actors[k]
        self.refs = state.runs[self.me.run]
        self.r, self.base, self.asked, *_ = self.refs  # R, K and the ask as they are now
        self.held = self.r if self.r and self.r.holder == k else None  # R, if it is ours
        self.file = 1 << (k * FILES + self.me.attempt)  # of the next checkpoint
        self.landed = next((push for push in self.me.doubts if push.landed), None) if self.me.doubts else None

    def remembering(self, me: Session, state: State) -> State:
        """Return the state in which the actor remembers `me`."""
        return State(*state[:4], put(state.sessions, self.k, me), *state[5:])  # `_replace` takes twice as long

    def to(self, at: str, state: State | None = None, *, note: tuple[Any, ...] = (), **changes: Any) -> State:
        """Return the state (this one by default) with the actor's next step and other changes of its memory."""
        state = state or self.state
        me = state.sessions[self.k]
        me = me._replace(at=at, note=note, **changes) if changes else Session(at, *me[1:-1], note)
        return self.remembering(me, state)

    def end(self, state: State | None = None) -> State:
        """Return the state (this one by default) after the last step; a recoverer and a sweeper begin anew."""
        at, attempt = ("idle" if self.actor.kind in "XW" else "done"), int(self.actor.kind == "W")
        return self.remembering(Session(at, self.actor.run, attempt), state or self.state)

    def deletes(self, waste: int) -> tuple[str, State]:
        """Return the step that deletes the first of these files."""
        bit = waste & -waste
        state = self.state._replace(files=self.state.files & ~bit)
        return f"deletes {name(bit)}", self.to(self.me.at, state, note=self.me.note, listed=self.me.listed & ~bit)

    def lost(self, state: State) -> State:
        """Return the state with one lost answer less to come."""
        return state._replace(losses=self.state.losses - 1)

    def with_run(self, run: Run) -> State:
        """Return the state with other refs of the run; no push is fenced."""
        return self.state._replace(runs=put(self.state.runs, self.me.run, run))

    def moved(
        self, r: Record | None, *, k: int | None = None, asked: bool = False, ends_stop: bool = False,
        ends_wish: bool = False,
    ) -> State:  # fmt: skip
        """Return the state after a push that moves R (rule 1): it fences every push in doubt, and is a sign of life."""
        state, number = self.state, self.me.run
        sessions = state.sessions
        for j, other in enumerate(sessions):
            if other.run == number and (other.doubts or other.at == "wait"):
                fenced = tuple(push for push in other.doubts if push.landed or not self.rules.hold_in_push)
                note = () if other.at == "wait" else other.note
                sessions = put(sessions, j, other._replace(doubts=fenced, note=note))
        stop, wanted = 0 if ends_stop else self.refs.stop, self.refs.wanted and not ends_wish
        run = Run(r, self.base if k is None else k, asked, stop, wanted)
        return state._replace(runs=put(state.runs, number, run), sessions=sessions)

    def pushed(self, push: Push) -> tuple[str, State]:
        """Return the state after a checkpoint push or commit push has happened."""
        verb = "PUBLISHES" if push.kind == "commit" else "MOVES K"
        if push.kind == "commit":
            gone = None if self.rules.hold_in_push or self.held else self.r
            state = self.moved(gone, k=0, ends_stop=self.rules.commit_ends_stop, ends_wish=True)
            state = state._replace(branches=state.branches | 1 << self.k)
        elif self.rules.hold_in_push and self.held:
            state = self.moved(Record(self.k, self.held.phase), k=push.file, asked=self.asked)
        else:
            state = self.with_run(self.refs._replace(k=push.file))
        return verb if self.held else f"{verb} WITHOUT HOLDING R", state

    def arrivals(self) -> Moves:
        """Yield pushes and uploads without an answer that happen late; a push needs the refs it expects (rule 1)."""
        for push in self.me.doubts:
            leased = push.kind == "commit" or push.base == self.base  # a commit push deletes K wherever it is
            if not push.landed and leased and (self.held or not self.rules.hold_in_push):
                verb, state = self.pushed(push)
                doubts = () if self.me.at == "dead" else (push._replace(landed=True),)
                yield f"{verb}: a late push", self.remembering(self.me._replace(doubts=doubts), state)
        for k, o in self.state.late:
            if k == self.k:
                store = put(self.state.store, o, self.state.store[o] | 1 << k)
                late = tuple(upload for upload in self.state.late if upload != (k, o))
                yield f"stores {o}: a late upload", self.state._replace(store=store, late=late)

    def learns(self) -> tuple[str, State]:
        """Return the step of a session that reads R at a push that it has tried, and then reads K (rule 1)."""
        return "sees R at a push that was in doubt, and reads K", self.to(self.me.at, base=self.base, doubts=())

    def is_alive(self, holder: int) -> bool:
        """Return whether R's holder is still at work."""
        return self.state.sessions[holder].at not in {*ENDS, "idle"}


class Steps(Turn):
    """One method a step, which yields its outcomes; each names the rules that it implements."""

    def idle(self) -> Moves:
        """Begin anew: `recover()` of a silent R, or a sweep where no R is (rule 4)."""
        runs, actors = self.world.runs, self.world.actors
        for number, (r, k, *_) in enumerate(self.state.runs):
            if runs[number][0] != runs[self.actor.run][0]:
                continue
            waste = self.state.files & self.model.files[number] & ~k & ~(self.model.own[r.holder] if r else 0)
            if self.actor.kind == "W":
                if waste or not self.me.attempt:
                    yield f"begins to sweep run {number}", self.to("sweeper_read", run=number, attempt=1)
            elif (
                waste if r is None else not self.is_alive(r.holder) or self.world.hasty > (actors[r.holder].kind != "S")
            ):
                yield f"begins to settle run {number}", self.to("start", run=number)

    # taking R, and sweeping

    def start(self) -> Moves:
        """Begin with the first step of the order."""
        if self.model.first == "list_files":
            yield from self.list_files()
        else:
            yield "begins", self.to(self.model.first)

    def list_files(self) -> Moves:
        """List the files (rule 4)."""
        yield "lists the files", self.to(self.model.after["L"], listed=self.state.files)
        if self.world.lag and self.state.files:
            yield "lists the files, and gets an old list", self.to(self.model.after["L"], listed=0)

    def look(self) -> Moves:
        """Read R; create the ask if R exists."""
        if self.r is None:
            yield "sees that nobody holds R", self.to("take")
        else:
            yield "asks", self.to("wait", self.with_run(self.refs._replace(asked=True)), note=("R has not moved",))

    def take(self) -> Moves:
        """Create R (rule 1)."""
        if self.r is None:
            yield "TAKES R", self.to(self.model.after["T"], self.moved(Record(self.k), **self._ends_stop()))
        else:
            yield "is rejected: R exists", self.to("look")

    def _ends_stop(self) -> dict[str, bool]:
        """Return whether this actor deletes the stop when it takes R, and whether a person has wanted that (rule 7)."""
        if self.actor.kind == "S":
            return {"ends_stop": self.rules.take_ends_stop, "ends_wish": True}
        return {"ends_stop": not self.rules.recovery_keeps_stop}

    def wait(self) -> Moves:
        """Wait one lease; take over from exactly the R that was seen, and inherit what it declares (rule 3)."""
        r = self.r
        if self.me.note:
            if r and (self.world.hasty or not self.is_alive(r.holder)):
                declared = 1 << r.holder if r.phase != "trains" and self.rules.declare else 0
                undo = declared | (r.undo if self.rules.inherit else 0)
                taken = self.moved(Record(self.k, undo=undo), **self._ends_stop())
                yield f"TAKES R OVER from {r.holder}", self.to(self.model.after["T"], taken, inherited=undo)
            elif r and not self.asked:
                yield "asks again", self.to("wait", self.with_run(self.refs._replace(asked=True)), note=self.me.note)
        elif r is None:
            yield "sees that R was released", self.to("take")
        elif self.actor.kind == "X":
            yield "sees that the holder lives", self.end()
        else:
            yield "sees that another session trains this run", self.to("held", listed=0, base=0)

    def read_r(self) -> Moves:
        """Read R between the listing and K, if the files are listed after R was taken (rule 4)."""
        if self.held:
            yield "sees that R is its own", self.to(self.model.after["R"])
        else:
            yield "sees that R was taken over", self.to("read_k_again", listed=0)

    def read_k(self) -> Moves:
        """Read K (rule 4)."""
        yield "reads K", self.to(self.model.after["B"], base=self.base)

    def sweep(self) -> Moves:
        """Delete the listed files that K does not name (rule 4)."""
        kept = self.model.own[self.k] | (self.me.base if self.rules.keep_named_file else 0)
        waste = self.me.listed & self.state.files & self.model.files[self.me.run] & ~kept
        after = "roll_back_inherited" if self.me.inherited else "train"
        yield self.deletes(waste) if waste else ("has swept", self.to(after, listed=0))

    def sweeper_read(self) -> Moves:
        """Read the files, R and K without holding R, in the order of rule 4."""
        seen, order = self.me.note, self.rules.sweeper_order
        if len(seen) < len(order):
            holders = self.model.own[self.r.holder] if self.r else 0
            value = {"L": self.state.files, "R": holders, "B": self.base}[order[len(seen)]]
            yield f"reads {order[len(seen)]}", self.to("sweeper_read", note=(*seen, value))
        else:
            listed, holders, base = (seen[order.index(letter)] for letter in "LRB")
            waste = listed & self.model.files[self.me.run] & ~holders & ~base
            yield "knows what is waste", self.to("sweeper_delete", listed=waste)

    def sweeper_delete(self) -> Moves:
        """Delete the waste; it stays waste during any pause (rule 4)."""
        waste = self.me.listed & self.state.files
        yield self.deletes(waste) if waste else ("ends", self.end())

    # checkpoints

    def train(self) -> Moves:
        """Train, and answer the ask with a push that moves R; the poller reads R, too."""
        if self.me.doubts and self.rules.kept_until != "R moved":
            newest = self.me.doubts[-1].file if self.rules.kept_until == "a push" else 0
            if waste := self.me.listed & self.state.files & ~newest & ~self.base:
                yield self.deletes(waste)
        if self.held and self.landed:
            yield self.learns()
        elif self.held and self.asked:
            yield "answers", self.to("train", self.moved(Record(self.k, undo=self.held.undo)))
        if self.held and self.refs.stop and self.actor.kind == "S":
            whose = "" if self.refs.stop == self.k + 1 else " OF ANOTHER SESSION"
            discards = any(each.kind == "P" and each.discards for each in self.world.actors)
            yield f"OBEYS A STOP{whose}", self.to("discard" if discards else "declare")
        if self.actor.kind == "S" and self.me.attempt < self.actor.checkpoints:
            yield "trains", self.to("upload_checkpoint")
        elif self.actor.kind == "S" and self.actor.objects:
            yield "has finished training", self.to("declare")
        else:
            yield "has nothing to do", self.to("release")

    def upload_checkpoint(self) -> Moves:
        """Upload the checkpoint under a new name; without an answer the file may be there."""
        state = self.state._replace(files=self.state.files | self.file)
        after = "push_checkpoint" if self.rules.delete_after else "delete_before"
        yield f"uploads {name(self.file)}", self.to(after, state)
        if self.state.losses:
            yield f"gets no answer, {name(self.file)} is there", self.to("discard_checkpoint", self.lost(state))

    def delete_before(self) -> Moves:
        """Delete the old file before the push that supersedes it, against rule 4."""
        state = self.state._replace(files=self.state.files & ~self.me.base)
        yield "deletes the old file first", self.to("push_checkpoint", state)

    def push_checkpoint(self) -> Moves:
        """Move R and K in one push (rule 1)."""
        if self.base == self.me.base and (self.held or not self.rules.hold_in_push):
            push = Push("checkpoint", self.file, self.me.base)
            verb, state = self.pushed(push)
            yield verb, self.to("delete_superseded", state, note=(self.file,))
            if self.state.losses:
                unknown = self.to("doubt", self.lost(self.state), doubts=(*self.me.doubts, push))
                yield "gets no answer to its checkpoint push", unknown
        elif self.held:
            yield "is rejected because of K, not of R: reads K again", self.to("push_checkpoint", base=self.base)
        else:
            yield "is rejected: R was taken over", self.to("read_k_again")

    def doubt(self) -> Moves:
        """Read R and K after a checkpoint push without an answer; no file goes before R has moved (rules 2 and 4)."""
        if self.landed:
            yield "sees that its push has happened", self.to("delete_superseded", doubts=(), note=(self.landed.file,))
        elif not self.rules.fence_doubt:
            yield "does not see its push", self.to("discard_checkpoint")
        elif not self.held:
            yield "sees that R was taken over", self.to("read_k_again")
        elif self.rules.lazy_fence:
            kept = self.me.listed | self.file | self.me.base
            yield "keeps its files in a list", self.to("train", attempt=self.me.attempt + 1, listed=kept)
        else:
            fenced = self.moved(self.held, asked=self.asked)
            yield "moves R: its push can never happen", self.to("discard_checkpoint", fenced)

    def discard_checkpoint(self) -> Moves:
        """Delete a file that no push has named, or that none can name any more (rule 2)."""
        state = self.state._replace(files=self.state.files & ~self.file)
        yield f"deletes its {name(self.file)}", self.to("train", state, attempt=self.me.attempt + 1)

    def delete_superseded(self) -> Moves:
        """Delete the old files and those in the list, now that R has moved and K names another (rule 4)."""
        (new,) = self.me.note
        waste = self.state.files & (self.me.base | self.me.listed | self.model.own[self.k]) & ~new
        goes_on = self.to("train", attempt=self.me.attempt + 1, base=new, listed=0)
        yield self.deletes(waste) if waste else ("goes on", goes_on)

    def read_k_again(self) -> Moves:
        """Read K after R was seen to be released or another's (rule 4)."""
        yield "reads K once more", self.to("delete_own", base=self.base)

    def delete_own(self) -> Moves:
        """Delete the session's files that K does not name (rule 4)."""
        waste = self.state.files & (self.model.own[self.k] | self.me.listed) & ~self.me.base
        yield self.deletes(waste) if waste else ("ends", self.end())

    def release(self) -> Moves:
        """Delete R after the copies (rule 3); then the files in the list that K does not name (rule 4)."""
        released = self.moved(None)
        if not self.held:
            yield "is rejected: R was taken over", self.to("read_k_again", copies=())
        elif self.me.copies and not self.rules.r_last:
            yield "releases R first", self.to("roll_back", released)
        elif not self.me.listed:
            yield "releases R", self.end(released)
        elif self.rules.kept_if_named:
            yield "releases R", self.to("read_k_again", released)
        else:
            yield "releases R", self.to("delete_own", released, base=0)

    def discard(self) -> Moves:
        """Delete K and R in one push, which leaves a stop (rule 7); then the files."""
        if self.held:
            state = self.moved(None, k=0 if self.rules.discard_in_push else None)
            yield "deletes K and R", self.to("delete_own", state, base=0)
        else:
            yield "is rejected: R was taken over", self.to("read_k_again")

    # publication

    def declare(self) -> Moves:
        """Declare the identities of all copies in R, before any exists (rule 3)."""
        if self.held or not self.rules.hold_in_push:
            state = self.moved(Record(self.k, "publishes"), asked=self.asked) if self.held else self.state
            nothing = (0,) * len(self.model.objects)
            yield "declares its objects' identities in R", self.to("store", state, copies=nothing)
        else:
            yield "is rejected: R was taken over", self.to("read_k_again")

    def store(self) -> Moves:
        """Store the next object; on one copy a key in order of name, and never over a copy (rule 5)."""
        missing = [o for o in bits(self.actor.objects) if not self.me.copies[o]]
        if not missing:
            yield "has all", self.to("verify")
            return
        for o in missing[:1] if self.rules.in_order else missing:
            yield from self._store(o, may_fail=o == missing[0] and self.state.losses > 0)
        yield from self._answer()

    def _store(self, o: int, *, may_fail: bool) -> Moves:
        there, twins, ghosts = self.state.store[o], self.world.twins, self.state.ghosts
        if twins and not self.rules.own_copy and (there or ghosts >> o & 1):
            yield f"skips {o}: a copy is listed", self.to("store", copies=put(self.me.copies, o, there or STRANGER))
        elif twins or not there or not self.rules.create_only:
            copies = put(self.me.copies, o, 1 << self.k)
            without = self.state._replace(ghosts=ghosts | (1 << o if self.world.lag else 0))
            stored = without._replace(store=put(self.state.store, o, (there if twins else 0) | 1 << self.k))
            yield f"stores its copy of {o}", self.to("store", stored, copies=copies)
            if may_fail and self.world.late_uploads:
                late = without._replace(late=(*self.state.late, (self.k, o)))
                yield f"gets no answer to its upload of {o}", self.to("fence", self.lost(late), copies=copies)
            if may_fail:
                yield f"gets no answer, its copy of {o} is there", self.to("fence", self.lost(stored), copies=copies)
        else:
            yield f"finds a copy of {o}", self.to("rely", copies=put(self.me.copies, o, there), note=(o,))

    def _answer(self) -> Moves:
        if self.held and self.asked:
            yield "answers", self.to(self.me.at, self.moved(Record(self.k, "publishes")), note=self.me.note)

    def rely(self) -> Moves:
        """Wait while another R of the repository declares the copy that is there; then rely on the copy (rule 5)."""
        (o,) = self.me.note
        declared, runs = 0, self.world.runs
        for number, (r, *_) in enumerate(self.state.runs):
            if r and runs[number][0] == runs[self.me.run][0] and number != self.me.run:
                declared |= r.undo | (1 << r.holder if r.phase != "trains" else 0)
        if not (self.me.copies[o] & declared and self.rules.wait):
            yield f"relies on the copy of {o}: no R declares it", self.to("store")
        elif self.state.store[o] != self.me.copies[o]:
            yield f"sees that the copy of {o} is gone", self.to("store", copies=put(self.me.copies, o, 0))
        yield from self._answer()

    def verify(self) -> Moves:
        """See each copy's identity once more before the commit (rule 5)."""
        ghosts = 0 if self.rules.verify_identity else self.state.ghosts
        seen = all(self.state.store[o] & self.me.copies[o] or ghosts >> o & 1 for o in bits(self.actor.objects))
        if seen or not self.rules.verify:
            yield "verifies", self.to("commit")
        else:
            yield "misses a copy", self.to("fence")

    def commit(self) -> Moves:
        """Create B and delete K, R and the ask in one push (rule 1)."""
        publishes = self.held is not None and self.held.phase == "publishes"
        if publishes or not self.rules.hold_in_push:
            push = Push("commit", 0, self.me.base)
            verb, state = self.pushed(push)
            yield verb, self.to("delete_checkpoint", state)
            if self.state.losses:
                unknown = self.to("doubt_commit", self.lost(self.state), doubts=(*self.me.doubts, push))
                yield "gets no answer to its commit push", unknown
            if self.state.losses and self.world.echo:
                yield f"{verb}, and reads 'cannot lock ref'", self.to("rejected", self.lost(state))
        else:
            yield "is rejected: R was taken over", self.to("rejected")

    def doubt_commit(self) -> Moves:
        """Read R and B after a commit push without an answer; move R before the roll back (rule 2)."""
        if self.landed:
            yield "sees that its push has happened", self.to("delete_checkpoint", doubts=())
        elif not self.rules.fence_doubt:
            yield "does not see its branch", self.to("roll_back")
        elif self.held:
            fenced = self.moved(Record(self.k, "rolls back"), asked=self.asked)
            yield "moves R: its push can never happen", self.to("roll_back", fenced)
        else:
            yield "sees that R was taken over", self.to("read_k_again")

    def delete_checkpoint(self) -> Moves:
        """Delete the checkpoint's files after the commit (rule 4)."""
        waste = self.state.files & (self.model.own[self.k] | self.me.listed | self.me.base)
        yield self.deletes(waste) if waste else ("ends, published", self.end())

    # roll back

    def fence(self) -> Moves:
        """Move R after a failed publication that has sent no commit push (rule 2)."""
        if self.held:
            state = self.moved(Record(self.k, "rolls back"), asked=self.asked)
            yield "moves R: it publishes no more", self.to("roll_back" if self.rules.r_last else "release", state)
        else:
            yield "sees that R was taken over", self.to("rejected")

    def rejected(self) -> Moves:
        """Look for B (rule 2); without B, on one copy a key, a session taken over leaves its copies (rule 5)."""
        if self.rules.doubt_rejection and self.state.branches >> self.k & 1:
            yield "sees its branch", self.to("delete_checkpoint", copies=())
        elif not self.world.twins and self.rules.leave_late:
            yield "leaves what it may have stored too late", self.to("read_k_again", copies=())
        else:
            yield self._rolls_back(1 << self.k, self.to("read_k_again", copies=()))

    def roll_back(self) -> Moves:
        """Delete what this session has declared; R goes afterwards (rule 3)."""
        yield self._rolls_back(1 << self.k, self.to("release", copies=()) if self.rules.r_last else self.end())

    def roll_back_inherited(self) -> Moves:
        """Delete what the dead have declared (rule 3)."""
        yield self._rolls_back(self.me.inherited, self.to("train", inherited=0))

    def _rolls_back(self, identities: int, after: State) -> tuple[str, State]:
        """Return the deletion of the next copy: no branch names it (rule 6), and R was read just before (rule 5)."""
        twins, at, rules, copies = self.world.twins, self.me.at, self.rules, self.state.store
        branches = self.state.branches & self.model.peers[self.k]  # another repository's branches are not seen
        named = self.model.named(branches) if rules.keep_named else 0
        may_delete = twins or (not rules.never_delete and (self.model.repositories == 1 or not rules.marks))
        o = next((o for o in self.model.objects if copies[o] & identities and not named >> o & 1), None)
        if o is None or not may_delete:
            return "has rolled back", after
        if not (twins or self.held or at == "rejected") and rules.reread and rules.r_last:
            return "sees that R was taken over", self.to("read_k_again", copies=(), inherited=0)
        if self.world.gap and not twins:
            return f"looks at {o}: it is what was declared", self.to("delete_looked_at", note=(o, at))
        left = put(copies, o, copies[o] & ~identities if twins else 0)
        return f"deletes the declared copy of {o}", self.to(at, self.state._replace(store=left))

    def delete_looked_at(self) -> Moves:
        """Delete what is under a key now: it was looked at before, and may have changed since."""
        o, back = self.me.note
        yield f"deletes the copy under {o}", self.to(back, self.state._replace(store=put(self.state.store, o, 0)))

    # people

    def push_by_hand(self) -> Moves:
        """Run `dvc push`, which uses any copy that is there, and `git push` (rule 6)."""
        if any(me.at in ROLL_BACKS for me in self.state.sessions):
            return
        objects, copies = self.actor.objects, self.state.store
        state = self.state._replace(
            store=tuple(c or (STRANGER if objects >> o & 1 else 0) for o, c in enumerate(copies))
        )
        if self.world.two_step_person:
            yield "runs dvc push", self.to("push_branch", state)
        else:
            yield "pushes by hand", self.to("done", state._replace(branches=state.branches | 1 << self.k))

    def push_branch(self) -> Moves:
        """Run `git push` some time after `dvc push`."""
        if not any(me.at in ROLL_BACKS for me in self.state.sessions):
            yield "runs git push", self.to("done", self.state._replace(branches=self.state.branches | 1 << self.k))

    def delete_by_hand(self) -> Moves:
        """Delete K (rule 1: "deleted by hand")."""
        if self.base:
            yield "deletes K by hand", self.to("done", self.with_run(self.refs._replace(k=0)))

    def ask_to_stop(self) -> Moves:
        """Read R: only a run that is held can be asked to stop (rule 7)."""
        if self.r:
            yield "sees that R is held", self.to("create_stop")

    def create_stop(self) -> Moves:
        """Create the stop, whoever holds R by now."""
        stop = self.r.holder + 1 if self.r else len(self.world.actors) + 1
        yield "creates the stop", self.to("look_again", self.with_run(self.refs._replace(stop=stop)))

    def look_again(self) -> Moves:
        """Delete the stop if R is gone: its session has ended before it (rule 7)."""
        if self.r is None:
            yield "deletes the stop: R is gone", self.to("done", self.with_run(self.refs._replace(stop=0)))
        else:
            yield "has asked", self.to("done", self.with_run(self.refs._replace(wanted=bool(self.refs.stop))))


ROLL_BACKS = {"roll_back", "roll_back_inherited", "rejected", "delete_looked_at"}
STEPS = {at: step for at, step in vars(Steps).items() if not at.startswith("_")}


def bits(objects: int) -> list[int]:
    """Return the numbers of the bits that are set."""
    return [o for o in range(objects.bit_length()) if objects >> o & 1]


def put(old: tuple[Any, ...], at: int, value: Any) -> tuple[Any, ...]:
    """Return the tuple with another value at one place."""
    return (*old[:at], value, *old[at + 1 :])


def name(file: int) -> str:
    """Return a file's name: its session and its number."""
    return "file {}.{}".format(*divmod(file.bit_length() - 1, FILES))


class Search:
    """The states that were found, by number, the nearest first."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.states = [model.start()]
        self.numbers = {self.states[0]: 0}
        self.came = [(0, 0, "")]  # the state, the actor and the step that led here first
        self.before: list[list[int]] = [[]]  # the states from which a step other than a death leads here
        self.resting: list[int] = []  # the states with no step but deaths

    def explore(self) -> Found:
        """Return the first broken promise, or else a state from which rest cannot be reached without more deaths."""
        for number, state in enumerate(self.states):
            if broken := self.model.broken(state) or self.expand(number, state):
                return self.found(broken, number)
        restful = set(self.resting)
        for number in self.resting:
            new = [one for one in self.before[number] if one not in restful]
            restful.update(new)
            self.resting.extend(new)
        restless = next((number for number in range(len(self.states)) if number not in restful), None)
        return Found(len(self.states)) if restless is None else self.found("NOBODY COMES TO REST", restless)

    def expand(self, number: int, state: State) -> str:
        """Add the states that can come next; return the promise that a step, or the lack of one, breaks."""
        at_rest = True
        for k, verb, new in self.model.steps(state):
            if "WITHOUT HOLDING R" in verb:
                return f"TWO SESSIONS MOVE ONE RUN: {k} {verb}"
            if "OF ANOTHER SESSION" in verb:
                return f"A STOP OUTLIVES ITS SESSION: {k} {verb}"
            after = self.numbers.setdefault(new, len(self.states))
            if after == len(self.states):
                self.states.append(new)
                self.came.append((number, k, verb))
                self.before.append([])
            if not verb.startswith("dies"):
                at_rest = False
                self.before[after].append(number)
        if not at_rest:
            return ""
        self.resting.append(number)
        return self.model.broken_at_rest(state)

    def found(self, broken: str, number: int) -> Found:
        """Return the result with the steps to a state."""
        history: list[str] = []
        while number:
            number, k, verb = self.came[number]
            history.insert(0, f"{self.model.world.actors[k].kind}{k} {verb}")
        return Found(len(self.states), broken, tuple(history))


def explore(world: World, rules: Rules) -> Found:
    """Explore all states of a world under some rules."""
    gc.disable()  # millions of tuples without a cycle: the collector would take a fifth of the time
    try:
        return Search(Model(world, rules)).explore()
    finally:
        gc.enable()
