"""Sweeps: one scenario with one kind of fault at call 1, 2, … of a publication, and all that must hold after each.

A sweep ends with the run that is through without reaching its fault. After each fault the world is examined at once,
after recovery from another clone, and after a retry. Two things keep that short and lose nothing in the end:

- Each commit breaks every third call of each sweep; three commits in a row break all. `--full` breaks all at once.
- A retry does what the world after the recovery lets it do. Where that world equals one of the same sweep that a retry
  has already been through, it is not played again; `World.digest` says what is compared. `--retry-all` plays each.

What a fault is, and how a call is broken, stands in `faults.py`.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from conftest import ROOT, SWEEPS, WEIGHTS, Stores, run_git, write_run
from faults import (
    BRANCH,
    CHECKPOINT,
    HELD,
    KILLED,
    KINDS,
    MANY,
    MEANWHILE,
    OTHER,
    OURS,
    Copies,
    Died,
    Doors,
    FolderShelf,
    Guest,
    Kind,
    Scenario,
    Shelf,
    content_of,
    end,
    md5_of,
    object_name,
    publish,
    start,
    walk,
)
from switches import Switch

from lib.errors import InDoubt, RunError, SyncError
from lib.sync import intent as journal
from lib.sync import lease as lease_module
from lib.sync import recover
from lib.sync import vault as vault_module

STRIDE = 3  # calls of a sweep between two that one commit breaks
COUNTED = re.compile(r"^calls: (\d+)$", re.MULTILINE)  # in what a child says that came through without its fault

REFUSE = f"""
while read old new ref; do
  case "$ref" in refs/heads/{BRANCH}|refs/heads/{CHECKPOINT}) echo "no new branches today" >&2; exit 1;; esac
done
"""


class HalfState(AssertionError):
    """The remotes hold part of a publication, or lack part of it."""


class Untrue(AssertionError):
    """The world is right, but what was said of it, or what comes next, is not."""


# ── what the sweeps of a session try and find ─────────────────────────────────────────────────────────────────────────


@dataclass
class Sweeps:
    """What the sweeps of one session try, and what they have found."""

    stride: int = 1
    """How far the next call that is broken lies from the last."""
    turn: int = 0
    """Which call of each stride is broken."""
    retry_all: bool = False
    """Whether a world is retried that equals one which has been."""
    counts: Counter[str] = field(default_factory=Counter)
    """`points` that were broken, `calls` that could be, `retries` and `half-states`."""
    findings: list[str] = field(default_factory=list)
    """Everything that should not be."""

    @classmethod
    def of(cls, config: pytest.Config) -> Self:
        """Return what the command line asks for; pytest adds up the counts of its processes."""
        stride = 1 if config.getoption("full") else STRIDE
        return cls(stride, _number_of_this_commit() % stride, config.getoption("retry_all"), config.stash[SWEEPS])

    def first_call(self, where: str) -> int:
        """Return the number of the first call that a sweep breaks; sweeps that resemble each other differ in it."""
        return 1 + (self.turn + zlib.crc32(where.encode())) % self.stride

    def line(self) -> str:
        """Return the sum of all."""
        rotating = f", rotating: turn {self.turn + 1} of {self.stride}" if self.stride > 1 else ""
        tried = f"of {self.counts['calls']}{rotating}; {self.counts['retries']} different worlds were retried"
        return f"{self.counts['points']} fault points, {self.counts['half-states']} half-states ({tried})"


def _number_of_this_commit() -> int:
    # its number in the history and not its hash: only so do three in a row break every call
    asked = subprocess.run(["git", "rev-list", "--count", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return int(asked.stdout or 0)


def gather(request: pytest.FixtureRequest) -> Sweeps:
    """Gather what all sweeps of this session find; the sum is the last line that pytest prints."""
    return Sweeps.of(request.config)


# ── looking ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@functools.cache
def _named_by(origin: Path, commit: str) -> Mapping[str, int]:
    """Return the objects that a commit names, with their sizes: a commit never changes, so it is read once."""
    found = {}
    for line in run_git("ls-tree", "-r", commit, cwd=origin).splitlines():
        if line.endswith(".dvc"):
            text = run_git("cat-file", "blob", line.split()[2], cwd=origin)
            (md5,), (size,) = re.findall(r"md5: (\w+)", text), re.findall(r"size: (\d+)", text)
            found[object_name(md5)] = int(size)
    return found


@functools.cache
def _record(origin: Path, commit: str) -> Mapping[str, Any]:
    """Return what the commit of an intent, or of a held run, says."""
    return dict(json.loads(run_git("cat-file", "blob", f"{commit}:intent.json", cwd=origin)))


@functools.cache
def _first_commit(stores: Stores) -> str:
    return stores.root()


class Sight:
    """Both remotes as they stand at one moment."""

    def __init__(self, stores: Stores, shelf: Shelf) -> None:
        self._origin = stores.origin
        self.refs = stores.refs()
        # the mark that says whose the DVC remote is stays for ever
        mark = f"kaggle-training-owner-{_first_commit(stores)}"
        self.copies: Copies = {name: copies for name, copies in shelf.copies().items() if name != mark}

    def identities(self) -> set[tuple[str, str]]:
        """Return every copy on the DVC remote: its path, with what changes when it is written again."""
        return {(name, key) for name, copies in self.copies.items() for key in copies}

    def intents(self) -> dict[str, Mapping[str, Any]]:
        """Return the records of the publications that are not finished, by ref."""
        found = {ref: commit for ref, commit in self.refs.items() if ref.startswith("refs/intents/")}
        return {ref: _record(self._origin, commit) for ref, commit in found.items()}

    def named_by(self, ref: str) -> Mapping[str, int]:
        """Return the objects that a branch names, with their sizes."""
        return _named_by(self._origin, self.refs[ref])

    def whole_branches(self) -> set[str]:
        """Return the objects that visible branches name, after checking that each is there, whole."""
        named: set[str] = set()
        for ref in self.refs:
            if not ref.removeprefix("refs/heads/").startswith(KINDS):
                continue
            objects = self.named_by(ref)
            for name, size in objects.items():
                standing = self.copies.get(name, {})
                if not standing:
                    raise HalfState(f"{ref} names {name}, which is not there")
                if any(len(content) != size or object_name(md5_of(content)) != name for content in standing.values()):
                    raise HalfState(f"{ref} names {name}, which has other content")
            if len(objects) != len(WEIGHTS):
                raise HalfState(f"{ref} names {len(objects)} objects")
            named |= objects.keys()
        return named


def _announced(intent: Mapping[str, Any]) -> set[str]:
    return {object_name(md5) for md5 in [item["oid"] for item in intent["objects"]] + intent["superseded"]}


class World:
    """The remotes and clones as they were prepared, for one fault, and what is to be seen there."""

    def __init__(self, stores: Stores, scenario: Scenario, shelf: Shelf) -> None:
        # always at one path: what a clone keeps of its remotes is found again
        shutil.rmtree(stores.folder)
        shutil.copytree(_template(stores), stores.folder)
        shelf.put_back()
        vault_module._SEEN.clear()
        self.scenario, self.stores, self.shelf = scenario, stores, shelf
        self.rescuer = stores.folder / "rescuer"
        self.models = {name: (self.stores.clone / name).read_bytes() for name in WEIGHTS}
        self.mine = {object_name(md5_of(content)): content for content in self.models.values()}
        seen = self.look()
        intents = seen.intents().values()
        named = seen.whole_branches()
        dead = {name for intent in intents for name in _announced(intent)}
        stood = {key for intent in intents for item in intent["objects"] for key in item["before"]}
        self.kept = {
            (name, key) for name, key in seen.identities() if name in named or name not in dead or key in stood
        }
        self.refs = {ref: commit for ref, commit in seen.refs.items() if ref.startswith("refs/heads/")}
        self.head = f"refs/heads/{scenario.branch}"
        self.replaced = {ref for ref in self.refs if ref.removeprefix("refs/heads/") in scenario.supersedes}
        # what only they name may go once we are published
        theirs = {name for ref in self.replaced for name in seen.named_by(ref)} - set(self.mine)
        self.superseded = {(name, key) for name, key in self.kept if name in theirs}
        self.index = (self.stores.clone / ".git" / "index").read_bytes()
        self.guest: Guest | None = None

    def __enter__(self) -> Self:
        if work := self.scenario.guest:
            clone = self.stores.folder / "guest"
            self.guest = Guest(functools.partial(work, clone), self.stores.folder / "guest.txt")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.guest is not None:
            self.guest.finish()

    def look(self) -> Sight:
        """Return what stands on both remotes now."""
        return Sight(self.stores, self.shelf)

    def is_published(self, seen: Sight) -> bool:
        """Whether our branch is there, with what this clone has."""
        return self.head in seen.refs and seen.named_by(self.head).keys() == self.mine.keys()

    def look_at_models(self) -> None:
        """Check that the models are in place, unchanged, and the user's index too."""
        for name, content in self.models.items():
            path = self.stores.clone / name
            if not path.is_file() or path.read_bytes() != content:
                raise HalfState(f"{name} is not what it was")
        if (self.stores.clone / ".git" / "index").read_bytes() != self.index:
            raise HalfState("the user's index has changed")

    def look_at_error(self, error: Exception, seen: Sight) -> None:
        """Check that an error is one of the vault's, says what to do, and that what it says of the world is so."""
        wanted = (RunError,) if self.scenario.recovers else (SyncError, InDoubt)
        if not isinstance(error, wanted):
            raise Untrue(f"it raises {type(error).__name__}: {str(error)[:300]}")
        for part in ("state", "remedy"):
            if not getattr(error, part) and not self.scenario.recovers:
                raise Untrue(f"{type(error).__name__} has no {part}: {str(error)[:300]}")
        if "everything is undone" in str(error):
            self._look_undone(seen)

    def _look_undone(self, seen: Sight) -> None:
        said = "it says that everything is undone, and"
        named = seen.whole_branches()
        if self.is_published(seen):
            raise Untrue(f"{said} the branch is there")
        for ref, intent in seen.intents().items():
            if OURS in ref:
                raise Untrue(f"{said} {ref} is there")
            named |= _announced(intent)
        if left := self._unnamed(seen, named):
            raise Untrue(f"{said} {sorted(left)} are there")
        for name in WEIGHTS:
            if (self.stores.clone / f"{name}.dvc").exists():
                raise Untrue(f"{said} {name}.dvc is there")

    def look_settled(self) -> bool:
        """Check that no half of anything is left; whether our branch is there."""
        seen = self.look()
        named = seen.whole_branches()
        if intents := seen.intents():
            raise HalfState(f"after recovery {sorted(intents)} are left")
        published = self.is_published(seen)
        ours = {self.head, *self.replaced} if published else set()
        strange = seen.refs.keys() - self.refs.keys() - ours - {f"refs/heads/{OTHER}", f"refs/runs/{HELD}"}
        if strange or any(seen.refs.get(ref) != commit for ref, commit in self.refs.items() if ref not in ours):
            raise HalfState(f"refs have changed: {sorted(strange)}")
        if published and (left := (self.replaced - {self.head}) & seen.refs.keys()):
            raise HalfState(f"published, and what it took the place of is left: {sorted(left)}")
        standing = seen.identities()
        if lost := self.kept - standing - (self.superseded if published else set()):
            raise HalfState(f"{sorted(lost)} stood there before")
        over = {(name, key) for name, key in self.superseded & standing if name not in named}
        if unnamed := self._unnamed(seen, named) | over:
            raise HalfState(f"objects are left that nobody names: {sorted(unnamed)}")
        return published

    def _unnamed(self, seen: Sight, named: set[str]) -> set[tuple[str, str]]:
        return {(name, key) for name, key in seen.identities() - self.kept if name not in named}

    def look_for_twins(self) -> None:
        """Check that nothing was stored twice."""
        new = [name for name, _ in self.look().identities() - self.kept]
        if twins := {name for name in new if new.count(name) > 1}:
            raise Untrue(f"stored more than once: {sorted(twins)}")

    def digest(self) -> str:
        """Return a digest of everything that a retry from the clone could depend on.

        That is both remotes, what they hide too (temporary files, uploads that were not ended, the trash), the clone's
        work tree, `.git` and DVC's folder to the byte, and this process's tables. Left out, or made equal, is:

        - Git's objects under their own names: what one says is its name, so that one more answers nothing anew. What
          has another name in there (a lock, half an object) counts.
        - Names that are drawn by lot (16 hex digits: an intent, a clone that meets its remotes for the first time) and
          the commits of such an intent, which the mirror keeps until it asks again.
        - When and by which process: reflogs, the number in DVC's lock files, the times of files, the nonce of a held
          run. Its owner counts: this process, or one that has ended.
        - What this process remembers of refs that are gone: no name is given twice. `DVC_SITE_CACHE_DIR`, which all
          faults share as all clones of a machine do: it is found by inode and time of writing.
        """
        seen = self.stores.refs()
        tables = (sorted(lease_module.ALIVE), sorted(ref for _, ref in vault_module._SEEN if ref in seen))
        held = [(ref, self._held(commit)) for ref, commit in seen.items() if ref.startswith("refs/runs/")]
        files = [
            (_without_lots(path), _content(content_of(file), path), file.lstat().st_mode)
            for path, file in (*walk(self.stores.origin), *walk(self.stores.clone))
            if not NAMED_BY_CONTENT.search(path)
        ]
        everything = (tables, held, sorted(files), self.shelf.everything())
        return hashlib.sha256(repr(everything).encode()).hexdigest()

    def _held(self, commit: str) -> str:
        record = dict(_record(self.stores.origin, commit))
        del record["nonce"]
        mine = record["owner"].pop("process") == journal.process_name(os.getpid())
        return _without_lots(json.dumps([record, mine]))


NAMED_BY_CONTENT = re.compile(
    r"/logs(/|$)|/objects/([0-9a-f]{2}(/[0-9a-f]{38})?|pack/pack-[0-9a-f]{40}\.(pack|idx|rev|promisor))$"
)


def _without_lots(text: str) -> str:
    return re.sub(r"\b[0-9a-f]{16}\b", "#", text)


def _content(content: bytes, path: str) -> str:
    text = _without_lots(content.decode("latin-1"))
    if "/.dvc/tmp/" in path:
        return re.sub(r"\d+", "#", text)
    return str(len(text)) if re.search(r"/refs/(intents|runs)/[0-9a-z-]+$", path) else text


# ── playing ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def prepare(stores: Stores, scenario: Scenario, shelf: Shelf) -> None:
    """Make the template that each fault of a sweep gets a copy of, and load what a child must not load again."""
    import tqdm

    tqdm.tqdm.monitor_interval = 0  # its thread would not survive a fork
    for name in ("rescuer", "guest"):
        clone = stores.clone_again(name)
        write_run(clone)
        shelf.connect(clone)
    clones = (stores.folder / "rescuer", stores.folder / "guest", stores.clone)
    for clone in clones:
        shutil.rmtree(clone / ".git" / "logs", ignore_errors=True)
    for clone in clones[: 2 if scenario.cold else 3]:
        recover(clone, say=str)
    _load_everything(stores, shelf)
    scenario.prepare(stores, shelf)
    if scenario.refused:
        stores.write_hook("pre-receive", REFUSE)
    shutil.rmtree(_template(stores), ignore_errors=True)
    shutil.copytree(stores.folder, _template(stores))
    shelf.keep()


def _template(stores: Stores) -> Path:
    return stores.folder.with_name(f"{stores.folder.name}-template")


def _load_everything(stores: Stores, shelf: Shelf) -> None:
    """Publish once and take it back, so that every library is loaded before the first fork."""
    clone = stores.clone_again("warm")
    write_run(clone)
    shelf.connect(clone)
    publish(clone)
    run_git("update-ref", "-d", f"refs/heads/{BRANCH}", cwd=stores.origin)
    shutil.rmtree(clone)
    shelf.clear()


def in_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield a folder in memory, where the machine has one: each fault gets remotes and clones of its own."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        monkeypatch.setenv("DVC_SITE_CACHE_DIR", f"{folder}/dvc")
        template = Path(folder) / "git-template"
        template.mkdir()
        monkeypatch.setenv("GIT_TEMPLATE_DIR", str(template))  # no samples of hooks to copy for every fault
        world = Path(folder) / "world"
        world.mkdir()
        yield world


def assert_nothing_is_found(
    stores: Stores, scenario: Scenario, kind: Kind, sweeps: Sweeps, *, shelf: Shelf | None = None
) -> None:
    """Sweep, and show everything that should not be."""
    calls, before = sweeps.counts["calls"], len(sweeps.findings)
    sweep(stores, scenario, kind, sweeps, shelf=shelf)
    assert sweeps.counts["calls"] > calls
    found = sweeps.findings[before:]
    assert not found, "\n".join(["", *found])


def sweep(
    stores: Stores,
    scenario: Scenario,
    kind: Kind,
    sweeps: Sweeps,
    *,
    until_found: bool = False,
    switch: Switch | None = None,
    shelf: Shelf | None = None,
) -> None:
    """Break one call after the other until a run is through without reaching the fault.

    `switch` turns a rule of the protocol off after everything is prepared; `until_found` stops at the first finding.
    The DVC remote is the folder of `stores` if it is no other.
    """
    shelf = shelf or FolderShelf(stores)
    prepare(stores, scenario, shelf)
    with pytest.MonkeyPatch.context() as patch:
        if switch:
            switch(patch)
        patch.setattr(sys, "stderr", io.StringIO())  # progress bars
        worlds = functools.partial(World, stores, scenario, shelf)
        where = f"[{scenario.name}; {kind.name}] "
        _sweep(worlds, kind, sweeps, where, until_found=until_found)


def _sweep(worlds: Callable[[], World], kind: Kind, sweeps: Sweeps, where: str, *, until_found: bool) -> None:
    retried: set[str] = set()
    for at in range(sweeps.first_call(where), MANY, sweeps.stride):
        with worlds() as world:
            played = Play(world, kind, at, None if sweeps.retry_all else retried)
            try:
                played.play()
            except (HalfState, Untrue) as found:
                sweeps.findings.append(f"{where}{at} {played.call}: {found}")
                sweeps.counts["half-states"] += isinstance(found, HalfState)
            sweeps.counts["retries"] += played.retried
            if not played.reached:
                sweeps.counts["calls"] += played.calls
                return
            sweeps.counts["points"] += 1
            if until_found and sweeps.findings:
                return
    raise AssertionError("a publication makes that many calls?")


class Play:
    """One run of a scenario with one fault, and all that must hold after it.

    `before` are the digests of the worlds that this sweep has retried already, if those are not to be retried again.
    """

    def __init__(self, world: World, kind: Kind, at: int, before: set[str] | None) -> None:
        self.world, self.kind, self._before = world, kind, before
        scenario = world.scenario
        self.doors = Doors(
            kind,
            at,
            from_refusal=scenario.refused and not scenario.whole,
            guest=world.guest,
            shelf=world.shelf if kind.on_the_wire else None,
        )
        self.reached = self.retried = False
        self._report = world.stores.folder / "child.txt"

    @property
    def call(self) -> str:
        """What was broken."""
        if self.kind.kills:
            return self._said().rpartition(KILLED)[2]
        return self.doors.passed[self.doors.at - 1] if self.doors.reached else ""

    @property
    def calls(self) -> int:
        """How many calls there were in a run that was through without its fault."""
        return int(COUNTED.findall(self._said())[-1]) if self.kind.kills else len(self.doors.passed)

    def _said(self) -> str:
        return self._report.read_text(encoding="utf-8") if self._report.exists() else ""

    def play(self) -> None:
        """Do it all."""
        world, scenario = self.world, self.world.scenario
        error = self._do()
        world.look_at_models()
        seen = world.look()
        seen.whole_branches()
        told: Untrue | None = None
        try:
            self._look_at_outcome(error, seen)
        except Untrue as untrue:  # a half-state found later is worse
            told = untrue
        if self.kind.arrives == "before":
            self.doors.deliver()
            world.look().whole_branches()
        if world.guest is not None:
            status, world.guest = world.guest.finish(), None
            world.look().whole_branches()
            if status != 0:
                report = (world.stores.folder / "guest.txt").read_text(encoding="utf-8")
                told = told or Untrue(f"the other run failed: {report[-500:]}")
        self._recover()
        standing = world.look_settled()
        if self.kind.arrives == "after":
            self.doors.deliver()
            world.look().whole_branches()
            self._recover()
            standing = world.look_settled()
        if scenario.refused:
            world.stores.remove_hook("pre-receive")
        if self._is_new():
            self._retry(standing)
        if told is not None:
            raise told

    def _do(self) -> Exception | None:
        world, scenario = self.world, self.world.scenario
        publish_it = scenario.publishing(world.stores.clone)

        def act() -> None:
            with self.doors.installed():
                if scenario.recovers:
                    recover(world.rescuer, older_than=0, say=str)
                else:
                    publish_it()

        def act_and_count() -> None:
            try:
                act()
            finally:
                os.write(2, f"\ncalls: {len(self.doors.passed)}\n".encode())

        if self.kind.kills:
            status = end(start(act_and_count, self._report), self._report)
            self.reached = status == -signal.SIGKILL
            if not self.reached and status != int(scenario.refused):
                raise Untrue(f"without a fault: {self._said()[-2000:]}")
            return None
        error = None
        try:
            act()
        except Died:
            pass
        except Exception as caught:  # noqa: BLE001  what it may be is looked at
            error = caught
        self.reached = self.doors.reached
        return error

    def _look_at_outcome(self, error: Exception | None, seen: Sight) -> None:
        world, scenario = self.world, self.world.scenario
        if error is not None:
            if not self.reached and not scenario.refused:
                raise Untrue(f"without a fault it raises {error!r}")
            if self.kind.name == MEANWHILE.name and not scenario.refused:
                raise Untrue(f"nothing failed, and it raises {error!r}")
            world.look_at_error(error, seen)
        elif self.kind.kills or self.kind.dies or scenario.recovers:
            pass
        elif not world.is_published(seen):
            raise Untrue("it says that it is published, and there is no branch")
        elif any(OURS in ref and intent["state"] != "cleaning" for ref, intent in seen.intents().items()):
            raise HalfState("it says that it is published, and its intent is left")

    def _recover(self) -> None:
        try:
            left = recover(self.world.rescuer, older_than=0, say=str)
        except RunError as error:
            raise HalfState(f"it cannot be recovered: {str(error)[:500]}") from error
        if left:
            raise HalfState(f"recovery leaves {left} intents")

    def _is_new(self) -> bool:
        """Whether no fault of this sweep has left a world like this one."""
        if self._before is None:
            return True
        digest = self.world.digest()
        known = digest in self._before
        self._before.add(digest)
        return not known

    def _retry(self, standing: bool) -> None:
        self.retried = True
        world = self.world
        for before in sorted({standing, True}):
            try:
                published = world.scenario.publishing(world.stores.clone)()
            except Exception as error:
                raise HalfState(f"a retry fails: {type(error).__name__}: {str(error)[:500]}") from error
            if published.before is not before:
                raise Untrue(f"a retry says that it was {'' if published.before else 'not '}published before")
        if not world.look_settled():
            raise HalfState("a retry does not publish")
        world.look_for_twins()
        world.look_at_models()
