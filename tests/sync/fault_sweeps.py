"""Sweeps: run a scenario with a kind of fault at call 1, 2, … of it, and check all promises after each.

A sweep ends with the run that completes without reaching its fault. After each fault the world (remotes and clones) is
checked at once, after recovery from another clone, and after a retry. Two shortcuts lose nothing in the long run:

- Each commit breaks every 16th call of each sweep; 16 commits in a row break all. `--full` breaks all at once.
- The outcome of a retry depends on the world after the recovery alone. If that world equals one of the same sweep that
  has been retried, it is not retried again; `World.digest` defines what is compared. `--retry-all` retries each.

`faults.py` defines the faults and how a call is broken, `scenarios.py` what is published meanwhile.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import re
import shutil
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
from conftest import ROOT, RUN, SWEEPS, WEIGHTS, Stores, run_git, write_run
from faults import (
    SURROUNDINGS,
    Copies,
    Died,
    DvcRemote,
    FaultInjector,
    Kind,
    Peer,
    content_of,
    walk,
)
from publications import OTHER, md5_of, object_name, publish, refuse
from scenarios import BY_HAND, CHECKPOINT_HEAD, HEAD, Scenario
from switches import Switch

from lib.errors import InDoubt, RunError, SyncError
from lib.remotes.credentials import Credentials
from lib.sync import Refs, recover

STRIDE = 16  # calls of a sweep between two that one commit breaks
MANY = 600  # more calls than a scenario makes
FLAT = re.compile(r"\.?kaggle-training-")
MARKS = re.compile(r"\.?kaggle-training-(repository-|store)")  # files that name a repository or the store for good


class HalfState(AssertionError):
    """The remotes hold part of a publication, or lack part of it."""


class WrongReport(AssertionError):
    """The remotes are right, but an error, a result or a retry describes them wrongly."""


# ── counts and findings of a session's sweeps ─────────────────────────────────────────────────────────────────────────


@dataclass
class Sweeps:
    """The settings, counts and findings of one session's sweeps."""

    stride: int = 1
    """Every how many calls one is broken."""
    turn: int = 0
    """Which call of each stride is broken."""
    retry_all: bool = False
    """Whether a world that equals an earlier one is retried again."""
    counts: Counter[str] = field(default_factory=Counter)
    """`points` that were broken, `calls` that could be, `retries` and `half-states`."""
    findings: list[str] = field(default_factory=list)
    """Every broken promise."""

    @classmethod
    def of(cls, config: pytest.Config) -> Self:
        """Return the settings of the command line; pytest adds up the counts of its processes."""
        stride = 1 if config.getoption("full") else STRIDE
        return cls(stride, _number_of_this_commit() % stride, config.getoption("retry_all"), config.stash[SWEEPS])

    def first_call(self, where: str) -> int:
        """Return the number of the first call that a sweep breaks; similar sweeps begin at different calls."""
        return 1 + (self.turn + zlib.crc32(where.encode())) % self.stride

    def line(self) -> str:
        """Return the sums as one line."""
        rotating = f", rotating: turn {self.turn + 1} of {self.stride}" if self.stride > 1 else ""
        tried = f"of {self.counts['calls']}{rotating}; {self.counts['retries']} different worlds were retried"
        return f"{self.counts['points']} fault points, {self.counts['half-states']} half-states ({tried})"


def _number_of_this_commit() -> int:
    # the position in the history, not the hash: then 16 commits in a row break every call
    asked = subprocess.run(["git", "rev-list", "--count", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return int(asked.stdout or 0)


def gather(request: pytest.FixtureRequest) -> Sweeps:
    """Return the settings, counts and findings of this session's sweeps; pytest prints the sums as its last line."""
    return Sweeps.of(request.config)


# ── checks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@functools.cache
def _named_by(origin: Path, commit: str) -> Mapping[str, int]:
    """Return the objects that a commit names, with their sizes; cached, since a commit never changes."""
    found = {}
    for line in run_git("ls-tree", "-r", commit, cwd=origin).splitlines():
        if line.endswith(".dvc"):
            text = run_git("cat-file", "blob", line.split()[2], cwd=origin)
            (md5,), (size,) = re.findall(r"md5: (\w+)", text), re.findall(r"size: (\d+)", text)
            found[object_name(md5)] = int(size)
    return found


@functools.cache
def _json(origin: Path, commit: str, path: str) -> Mapping[str, Any]:
    """Return the JSON file at a path of a commit."""
    return dict(json.loads(run_git("cat-file", "blob", f"{commit}:{path}", cwd=origin)))


class Snapshot:
    """The state of both remotes at one moment."""

    def __init__(self, stores: Stores, remote: DvcRemote) -> None:
        self._origin = stores.origin
        self.refs = stores.refs()
        self.copies: Copies = {name: copies for name, copies in remote.copies().items() if not MARKS.match(name)}

    def identities(self) -> set[tuple[str, str]]:
        """Return every copy on the DVC remote: its path and its identity."""
        return {(name, key) for name, copies in self.copies.items() for key in copies}

    def runs(self) -> dict[str, Mapping[str, Any]]:
        """Return the records of the runs under way, by ref."""
        found = {ref: commit for ref, commit in self.refs.items() if ref.startswith("refs/runs/")}
        return {ref: _json(self._origin, commit, "run.json") for ref, commit in found.items()}

    def declared(self, name: str = "") -> set[tuple[str, str]]:
        """Return every copy that a run, or that of this name, declares: its path and its identity."""
        runs = [run for ref, run in self.runs().items() if ref.endswith(name)]
        copies = [copy for run in runs for copy in (*run["undo"], *run["publishing"])]
        return {(object_name(copy["oid"]), copy["identity"]) for copy in copies}

    def named_by(self, ref: str) -> Mapping[str, int]:
        """Return the objects that a branch names, with their sizes."""
        return _named_by(self._origin, self.refs[ref])

    def check_branches(self) -> set[str]:
        """Check that all that a visible branch names is there and complete; return the paths of these files."""
        named: set[str] = set()
        for ref in self.refs:
            if ref == CHECKPOINT_HEAD:
                named |= self._check_checkpoint()
            elif ref == BY_HAND or ref.startswith("refs/heads/kaggle-train-"):
                named |= self._check_branch(ref)
        return named

    def _check_branch(self, ref: str) -> set[str]:
        objects = self.named_by(ref)
        for name, size in objects.items():
            copies = self.copies.get(name, {})
            if not copies:
                raise HalfState(f"{ref} names {name}, which is not there")
            if any(len(content) != size or object_name(md5_of(content)) != name for content in copies.values()):
                raise HalfState(f"{ref} names {name}, which has other content")
        if len(objects) != len(WEIGHTS):
            raise HalfState(f"{ref} names {len(objects)} objects")
        return set(objects)

    def checkpoint(self) -> Mapping[str, Any]:
        """Return the content of `checkpoint.json`."""
        return _json(self._origin, self.refs[CHECKPOINT_HEAD], f"{RUN}/checkpoint.json")

    def _check_checkpoint(self) -> set[str]:
        files = self.checkpoint()["files"]
        for file in files:
            content = self.copies.get(file["name"], {}).get(file["id"])
            if content is None or (len(content), md5_of(content)) != (file["size"], file["md5"]):
                raise HalfState(f"the checkpoint names {file['name']}, which is not there with its content")
        if len(files) != len(WEIGHTS):
            raise HalfState(f"the checkpoint names {len(files)} files")
        return {file["name"] for file in files}


class World:
    """The prepared remotes and clones for one fault, and the checks on them."""

    def __init__(self, stores: Stores, scenario: Scenario, remote: DvcRemote) -> None:
        # always at the same path, so that a clone finds its mirror of the remote again
        shutil.rmtree(stores.folder)
        shutil.copytree(_template(stores), stores.folder)
        remote.restore()
        SURROUNDINGS.begin("trial")
        self.scenario, self.stores, self.remote = scenario, stores, remote
        self.rescuer = stores.folder / "rescuer"
        self.models = {name: (self.stores.clone / name).read_bytes() for name in WEIGHTS}
        self.mine = {object_name(md5_of(content)): content for content in self.models.values()}
        seen = self.look()
        seen.check_branches()
        self._before = seen.identities()
        self._kept = {copy for copy in self._before - seen.declared() if not FLAT.match(copy[0])}
        self.refs = {ref: commit for ref, commit in seen.refs.items() if ref.startswith("refs/heads/")}
        self.index = (self.stores.clone / ".git" / "index").read_bytes()
        self.peer: Peer | None = None

    def __enter__(self) -> Self:
        if work := self.scenario.peer:
            clone = self.stores.folder / "peer"
            self.peer = SURROUNDINGS.peer = Peer(functools.partial(work, clone), self.stores.folder / "peer.txt")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.peer is not None:
            self.peer.go_on()
        SURROUNDINGS.peer = None

    def end_peer(self) -> None:
        """Let the other process finish, and check what it did."""
        if self.peer is None:
            return
        status, self.peer, SURROUNDINGS.peer = self.peer.go_on(), None, None
        seen, report = self.look(), self._report()
        seen.check_branches()
        if status != 0:
            raise WrongReport(f"the other process failed: {report[-1500:]}")
        moved = re.search(r"^checkpoint (\w+)$", report, re.MULTILINE)
        if moved and seen.refs.get(CHECKPOINT_HEAD) != moved[1]:
            raise HalfState("the checkpoint of the session that has taken the run over was moved")

    def _report(self) -> str:
        """Return what the other process has printed."""
        report = self.stores.folder / "peer.txt"
        return report.read_text(encoding="utf-8") if report.exists() else ""

    def kept(self) -> set[tuple[str, str]]:
        """Return the copies that others have stored, before the fault or meanwhile."""
        return self._kept | set(re.findall(r"^stored (\S+) (\S+)$", self._report(), re.MULTILINE))

    def look(self) -> Snapshot:
        """Return the current state of both remotes."""
        return Snapshot(self.stores, self.remote)

    def is_published(self, seen: Snapshot) -> bool:
        """Return whether our branch is there and names this clone's models."""
        return HEAD in seen.refs and seen.named_by(HEAD).keys() == self.mine.keys()

    def check_models(self) -> None:
        """Check that the models and the user's index are in place and unchanged."""
        for name, content in self.models.items():
            path = self.stores.clone / name
            if not path.is_file() or path.read_bytes() != content:
                raise HalfState(f"{name} is missing or has changed")
            if path.with_name(f"{path.name}.dvc").exists():
                raise HalfState(f"{name}.dvc is there")
        if (self.stores.clone / ".git" / "index").read_bytes() != self.index:
            raise HalfState("the user's index has changed")

    def check_error(self, error: Exception, seen: Snapshot) -> None:
        """Check that an error is of the right class and names a remedy, and that the state it reports is true."""
        if not isinstance(error, RunError if self.scenario.recovers else (SyncError, InDoubt)):
            raise WrongReport(f"it raises {type(error).__name__}: {str(error)[:300]}") from error
        if not self.scenario.recovers and not error.remedy:
            raise WrongReport(f"{type(error).__name__} has no remedy: {str(error)[:300]}")
        if not self.scenario.recovers and not self.scenario.holds and not error.state:
            raise WrongReport(f"{type(error).__name__} has no state: {str(error)[:300]}")
        if "everything is rolled back" in str(error) and self.is_published(seen):
            raise WrongReport("the error states that everything is rolled back, but the branch is there")
        left = {copy for copy in self._unnamed(seen) - seen.declared(OTHER) if copy[0] in self.mine}
        if "no new object" in str(error) and left:
            raise WrongReport(f"the error states that there is no new object, but {sorted(left)} are there")

    def check_recovered(self) -> bool:
        """Check that nothing is left half-done; return whether our branch is there."""
        seen = self.look()
        seen.check_branches()
        if left := [ref for ref in seen.refs if ref.startswith(("refs/runs/", "refs/asks/"))]:
            raise HalfState(f"after recovery {left} are left")
        published, holds = self.is_published(seen), self.scenario.holds or self.scenario.peer is not None
        ours = {HEAD} if published else set()
        ours |= {CHECKPOINT_HEAD} if holds else set()
        heads = {ref for ref in seen.refs if ref.startswith("refs/heads/")}
        strange = heads - self.refs.keys() - ours - {f"refs/heads/{OTHER}", BY_HAND}
        if strange or any(seen.refs.get(ref) != commit for ref, commit in self.refs.items() if ref not in ours):
            raise HalfState(f"refs have changed: {sorted(strange)}")
        if CHECKPOINT_HEAD in self.refs.keys() - seen.refs.keys() and not published:
            raise HalfState("the checkpoint is gone, and the run is not published")
        if published and self.scenario.ends_checkpoint and not self.scenario.is_lost and CHECKPOINT_HEAD in seen.refs:
            raise HalfState("the run is published, and its checkpoint is left")
        if lost := self.kept() - seen.identities():
            raise HalfState(f"copies that were stored before are lost: {sorted(lost)}")
        unnamed = self._unnamed(seen)
        if self.scenario.is_lost:  # what it stored too late may be what another publication relies on
            unnamed = {copy for copy in unnamed if copy[0] not in self.mine}
        if unnamed:
            raise HalfState(f"files are left that nothing names: {sorted(unnamed)}")
        return published

    def _unnamed(self, seen: Snapshot) -> set[tuple[str, str]]:
        named = seen.check_branches()
        return {copy for copy in seen.identities() - self.kept() if copy[0] not in named}

    def check_no_twins(self) -> None:
        """Check that no new object is stored twice; a copy of a dead run stays if a branch names the object by now."""
        new = [name for name, _ in self.look().identities() - self.kept() - self._before]
        if twins := {name for name in new if new.count(name) > 1}:
            raise WrongReport(f"stored more than once: {sorted(twins)}")

    def digest(self) -> str:
        """Return a digest of everything that a retry from the clone could depend on.

        It covers both remotes with their hidden parts (temporary files, unfinished uploads, the trash), and every byte
        of the clone's work tree, `.git` and DVC's folder. Left out, or made equal, are:

        - Git's objects under their own names: the name follows from the content, so that one more object changes no
          result. Files with other names among them (a lock, half an object) count.
        - The session in the file of a run that has ended, and where a run's ref was that the mirror keeps until the
          next fetch: both are random.
        - Times. `DVC_SITE_CACHE_DIR`, which all faults share as all clones of a machine do.
        """
        files = [
            (path, _content(content_of(file), path), file.lstat().st_mode)
            for path, file in (*walk(self.stores.origin), *walk(self.stores.clone))
            if not NAMED_BY_CONTENT.search(path)
        ]
        return hashlib.sha256(repr((sorted(files), self.remote.full_state())).encode()).hexdigest()


NAMED_BY_CONTENT = re.compile(
    r"/logs(/|$)|/objects/([0-9a-f]{2}(/[0-9a-f]{38})?|pack/pack-[0-9a-f]{40}\.(pack|idx|rev|promisor))$"
)


def _content(content: bytes, path: str) -> str:
    text = content.decode("latin-1")
    if "/.dvc/tmp/" in path:
        return re.sub(r"\d+", "#", text)
    return str(len(text)) if re.search(r"/kaggle-sync/(runs|mirror-\w+\.git/refs/(runs|asks))/", path) else text


# ── sweeping ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def prepare(stores: Stores, scenario: Scenario, remote: DvcRemote) -> None:
    """Create the template that each fault of a sweep starts from, and load the modules that child processes need."""
    import tqdm

    tqdm.tqdm.monitor_interval = 0  # its thread would not survive a fork
    SURROUNDINGS.begin("template")
    for name in ("rescuer", "peer", "warm"):
        clone = stores.clone_again(name)
        write_run(clone)
        remote.connect(clone)
    publish(stores.folder / "warm")  # loads every library before the first fork
    run_git("update-ref", "-d", HEAD, cwd=stores.origin)
    remote.clear(cold=scenario.cold)
    clones = [stores.folder / "rescuer", stores.folder / "peer", stores.clone]
    if scenario.cold:
        clones.pop()
        run_git("update-ref", "-d", Refs(stores.clone, Credentials()).identity_ref, cwd=stores.origin)
    for clone in clones:
        recover(clone, say=str)
    for name in ("rescuer", "peer", "clone", "warm"):
        shutil.rmtree(stores.folder / name / ("" if name == "warm" else ".git/logs"), ignore_errors=True)
    scenario.prepare(stores, remote)
    if scenario.refuses:
        refuse(stores, f"refs/heads/{scenario.refuses}")
    shutil.rmtree(_template(stores), ignore_errors=True)
    shutil.copytree(stores.folder, _template(stores))
    remote.keep()


def _template(stores: Stores) -> Path:
    return stores.folder.with_name(f"{stores.folder.name}-template")


def in_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield a folder, in memory if the machine has such a file system: each fault gets its own remotes and clones."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        monkeypatch.setenv("DVC_SITE_CACHE_DIR", f"{folder}/dvc")
        template = Path(folder) / "git-template"
        template.mkdir()
        monkeypatch.setenv("GIT_TEMPLATE_DIR", str(template))  # no samples of hooks to copy for every fault
        world = Path(folder) / "world"
        world.mkdir()
        yield world


def assert_no_findings(
    stores: Stores, scenario: Scenario, kind: Kind, sweeps: Sweeps, *, remote: DvcRemote | None = None
) -> None:
    """Sweep, and fail with every broken promise."""
    calls, before = sweeps.counts["calls"], len(sweeps.findings)
    sweep(stores, scenario, kind, sweeps, remote=remote)
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
    remote: DvcRemote | None = None,
) -> None:
    """Break one call after the other until a run completes without reaching the fault.

    `switch` turns a rule of the protocol off after everything is prepared; `until_found` stops at the first finding.
    The DVC remote is the folder of `stores` unless `remote` is given.
    """
    remote = remote or DvcRemote(stores)
    with pytest.MonkeyPatch.context() as patch:
        SURROUNDINGS.simulate(patch)
        prepare(stores, scenario, remote)
        if switch:
            switch(patch)
        if not kind.repeats:
            patch.setattr("lib.remotes.repository.PAUSES", ())
        patch.setattr(sys, "stderr", io.StringIO())  # progress bars
        worlds = functools.partial(World, stores, scenario, remote)
        where = f"[{scenario.name}; {kind.name}] "
        _sweep(worlds, kind, sweeps, where, until_found=until_found)


def _sweep(worlds: Callable[[], World], kind: Kind, sweeps: Sweeps, where: str, *, until_found: bool) -> None:
    retried: set[str] = set()
    for at in range(sweeps.first_call(where), MANY, sweeps.stride):
        with worlds() as world:
            trial = Trial(world, kind, at, None if sweeps.retry_all else retried)
            try:
                trial.run()
            except (HalfState, WrongReport) as found:
                sweeps.findings.append(f"{where}{at} {trial.call}: {found}")
                sweeps.counts["half-states"] += isinstance(found, HalfState)
            sweeps.counts["retries"] += trial.retried
            if not trial.reached:
                sweeps.counts["calls"] += len(trial.injector.counted)
                return
            sweeps.counts["points"] += 1
            if until_found and sweeps.findings:
                return
    raise AssertionError(f"a publication makes more than {MANY} calls")


class Trial:
    """One run of a scenario with one fault, and the checks after it.

    `before` contains the digests of the worlds that this sweep has retried; None retries every world.
    """

    def __init__(self, world: World, kind: Kind, at: int, before: set[str] | None) -> None:
        self.world, self.kind, self._before = world, kind, before
        scenario = world.scenario
        self.injector = FaultInjector(
            kind,
            at,
            from_refusal=bool(scenario.refuses) and not scenario.whole,
            remote=world.remote if kind.on_the_wire else None,
        )
        self.retried = False

    @property
    def reached(self) -> bool:
        """Return whether the fault has happened."""
        return self.injector.broken is not None

    @property
    def call(self) -> str:
        """Return the call that was broken."""
        return self.injector.counted[self.injector.at - 1] if self.reached else ""

    def run(self) -> None:
        """Run the scenario with its fault, recover, retry, and check after each."""
        world, kind = self.world, self.kind
        error = self._do()
        world.check_models()
        seen = world.look()
        seen.check_branches()
        wrong: WrongReport | None = None
        try:
            self._check_outcome(error, seen)
        except WrongReport as caught:  # raised last: a half-state found later is worse
            wrong = caught
        if kind.arrives == "before":
            self._deliver()
        try:
            world.end_peer()
        except WrongReport as caught:
            wrong = wrong or caught
        published = world.is_published(world.look())
        if not kind.skips_recovery:
            published = self._recover()
        if kind.arrives == "after":
            self._deliver()
            published = self._recover()
        if world.scenario.refuses:
            world.stores.remove_hook("pre-receive")
        if self._is_new():
            self._retry(published)
        if wrong is not None:
            raise wrong

    def _deliver(self) -> None:
        self.injector.deliver()
        self.world.look().check_branches()

    def _do(self) -> BaseException | None:
        world, scenario = self.world, self.world.scenario

        try:
            with self.injector.installed():
                if scenario.recovers:
                    recover(world.rescuer, patience=0 if scenario.peer else None, say=str)
                else:
                    scenario.publish(world.stores.clone)
        except (Exception, Died) as error:  # noqa: BLE001  `_check_outcome` checks its class
            return error
        return None

    def _check_outcome(self, error: BaseException | None, seen: Snapshot) -> None:
        world, scenario, kind = self.world, self.world.scenario, self.kind
        if isinstance(error, Exception):
            expected = scenario.fails or scenario.is_lost or kind.holds
            if not expected and (kind.harmless or not self.reached):
                raise WrongReport(f"nothing failed for good, but it raises {error!r}") from error
            world.check_error(error, seen)
        elif error is not None or scenario.recovers:
            pass
        elif not world.is_published(seen):
            raise WrongReport("the call succeeds, but there is no branch")
        elif any(not ref.endswith(OTHER) for ref in seen.runs()):
            raise HalfState("the call succeeds, but its run's ref is left")
        elif scenario.interrupted and (kind.harmless or not self.reached) and seen.checkpoint()["epoch"] != 2:
            raise WrongReport("nothing failed for good, but the last checkpoint is not published")

    def _recover(self) -> bool:
        """Recover from another clone; return whether our branch is there."""
        try:
            left = recover(self.world.rescuer, say=str)
        except RunError as error:
            raise HalfState(f"recovery fails: {str(error)[:500]}") from error
        if left:
            raise HalfState(f"recovery leaves {left} runs")
        return self.world.check_recovered()

    def _is_new(self) -> bool:
        """Return whether no fault of this sweep has left an equal world."""
        if self._before is None:
            return True
        digest = self.world.digest()
        known = digest in self._before
        self._before.add(digest)
        return not known

    def _retry(self, is_published: bool) -> None:
        self.retried = True
        world = self.world
        for before in sorted({is_published, True}):
            try:
                published = world.scenario.publish(world.stores.clone)
            except Exception as error:
                raise HalfState(f"a retry fails: {type(error).__name__}: {str(error)[:500]}") from error
            if published.before is not before:
                raise WrongReport(f"a retry reports {'an' if published.before else 'no'} earlier publication")
        if self.kind.skips_recovery:
            self._recover()
        if not world.check_recovered():
            raise HalfState("a retry does not publish")
        world.check_no_twins()
        world.check_models()
