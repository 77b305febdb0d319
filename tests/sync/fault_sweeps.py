"""Sweeps: run a scenario with a kind of fault at call 1, 2, … of a publication, and check all promises after each.

A sweep ends with the run that completes without reaching its fault. After each fault the world (remotes and clones) is
checked at once, after recovery from another clone, and after a retry. Two shortcuts lose nothing in the long run:

- Each commit breaks every third call of each sweep; three commits in a row break all. `--full` breaks all at once.
- The outcome of a retry depends on the world after the recovery alone. If that world equals one of the same sweep that
  has been retried, it is not retried again; `World.digest` defines what is compared. `--retry-all` retries each.

`faults.py` defines the faults and how a call is broken.
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
    HELD,
    KILLED,
    KINDS,
    MANY,
    MEANWHILE,
    OURS,
    Copies,
    Died,
    DvcRemote,
    FaultInjector,
    FolderRemote,
    Kind,
    Peer,
    Scenario,
    content_of,
    end,
    start,
    walk,
)
from publications import BRANCH, CHECKPOINT, OTHER, md5_of, object_name, publish, refuse
from switches import Switch

from lib.errors import InDoubt, RunError, SyncError
from lib.sync import intent as journal
from lib.sync import lease as lease_module
from lib.sync import recover
from lib.sync import remotes as remotes_module

STRIDE = 3  # calls of a sweep between two that one commit breaks
COUNTED = re.compile(r"^calls: (\d+)$", re.MULTILINE)  # in the output of a child process that did not reach its fault


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
    # the position in the history, not the hash: then three commits in a row break every call
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
def _record(origin: Path, commit: str) -> Mapping[str, Any]:
    """Return the record in the commit of an intent or of a held run."""
    return dict(json.loads(run_git("cat-file", "blob", f"{commit}:intent.json", cwd=origin)))


@functools.cache
def _first_commit(stores: Stores) -> str:
    return stores.root()


class Snapshot:
    """The state of both remotes at one moment."""

    def __init__(self, stores: Stores, remote: DvcRemote) -> None:
        self._origin = stores.origin
        self.refs = stores.refs()
        # the mark of the repository that owns the DVC remote is never deleted
        mark = f"kaggle-training-owner-{_first_commit(stores)}"
        self.copies: Copies = {name: copies for name, copies in remote.copies().items() if name != mark}

    def identities(self) -> set[tuple[str, str]]:
        """Return every copy on the DVC remote: its path and its identity."""
        return {(name, key) for name, copies in self.copies.items() for key in copies}

    def intents(self) -> dict[str, Mapping[str, Any]]:
        """Return the records of unfinished publications, by ref."""
        found = {ref: commit for ref, commit in self.refs.items() if ref.startswith("refs/intents/")}
        return {ref: _record(self._origin, commit) for ref, commit in found.items()}

    def named_by(self, ref: str) -> Mapping[str, int]:
        """Return the objects that a branch names, with their sizes."""
        return _named_by(self._origin, self.refs[ref])

    def check_branches(self) -> set[str]:
        """Check that every object that a visible branch names is there and complete; return these objects."""
        named: set[str] = set()
        for ref in self.refs:
            if not ref.removeprefix("refs/heads/").startswith(KINDS):
                continue
            objects = self.named_by(ref)
            for name, size in objects.items():
                copies = self.copies.get(name, {})
                if not copies:
                    raise HalfState(f"{ref} names {name}, which is not there")
                if any(len(content) != size or object_name(md5_of(content)) != name for content in copies.values()):
                    raise HalfState(f"{ref} names {name}, which has other content")
            if len(objects) != len(WEIGHTS):
                raise HalfState(f"{ref} names {len(objects)} objects")
            named |= objects.keys()
        return named


def _announced(intent: Mapping[str, Any]) -> set[str]:
    return {object_name(md5) for md5 in [item["oid"] for item in intent["objects"]] + intent["superseded"]}


class World:
    """The prepared remotes and clones for one fault, and the checks on them."""

    def __init__(self, stores: Stores, scenario: Scenario, remote: DvcRemote) -> None:
        # always at the same path, so that a clone finds its mirror of the remote again
        shutil.rmtree(stores.folder)
        shutil.copytree(_template(stores), stores.folder)
        remote.restore()
        remotes_module._SEEN.clear()
        self.scenario, self.stores, self.remote = scenario, stores, remote
        self.rescuer = stores.folder / "rescuer"
        self.models = {name: (self.stores.clone / name).read_bytes() for name in WEIGHTS}
        self.mine = {object_name(md5_of(content)): content for content in self.models.values()}
        seen = self.look()
        intents = seen.intents().values()
        named = seen.check_branches()
        dead = {name for intent in intents for name in _announced(intent)}
        before = {key for intent in intents for item in intent["objects"] for key in item["before"]}
        self.kept = {
            (name, key) for name, key in seen.identities() if name in named or name not in dead or key in before
        }
        self.refs = {ref: commit for ref, commit in seen.refs.items() if ref.startswith("refs/heads/")}
        self.head = f"refs/heads/{scenario.branch}"
        self.replaced = {ref for ref in self.refs if ref.removeprefix("refs/heads/") in scenario.supersedes}
        # the objects that only they name may be deleted once our branch is published
        theirs = {name for ref in self.replaced for name in seen.named_by(ref)} - set(self.mine)
        self.superseded = {(name, key) for name, key in self.kept if name in theirs}
        self.index = (self.stores.clone / ".git" / "index").read_bytes()
        self.peer: Peer | None = None

    def __enter__(self) -> Self:
        if work := self.scenario.peer:
            clone = self.stores.folder / "peer"
            self.peer = Peer(functools.partial(work, clone), self.stores.folder / "peer.txt")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.peer is not None:
            self.peer.finish()

    def look(self) -> Snapshot:
        """Return the current state of both remotes."""
        return Snapshot(self.stores, self.remote)

    def is_published(self, seen: Snapshot) -> bool:
        """Return whether our branch is there and names this clone's models."""
        return self.head in seen.refs and seen.named_by(self.head).keys() == self.mine.keys()

    def check_models(self) -> None:
        """Check that the models and the user's index are in place and unchanged."""
        for name, content in self.models.items():
            path = self.stores.clone / name
            if not path.is_file() or path.read_bytes() != content:
                raise HalfState(f"{name} is missing or has changed")
        if (self.stores.clone / ".git" / "index").read_bytes() != self.index:
            raise HalfState("the user's index has changed")

    def check_error(self, error: Exception, seen: Snapshot) -> None:
        """Check that an error is of the right class and names a remedy, and that the state it reports is true."""
        wanted = (RunError,) if self.scenario.recovers else (SyncError, InDoubt)
        if not isinstance(error, wanted):
            raise WrongReport(f"it raises {type(error).__name__}: {str(error)[:300]}")
        for part in ("state", "remedy"):
            if not getattr(error, part) and not self.scenario.recovers:
                raise WrongReport(f"{type(error).__name__} has no {part}: {str(error)[:300]}")
        if "everything is rolled back" in str(error):
            self._check_rolled_back(seen)

    def _check_rolled_back(self, seen: Snapshot) -> None:
        claim = "the error states that everything is rolled back, but"
        named = seen.check_branches()
        if self.is_published(seen):
            raise WrongReport(f"{claim} the branch is there")
        for ref, intent in seen.intents().items():
            if OURS in ref:
                raise WrongReport(f"{claim} {ref} is there")
            named |= _announced(intent)
        if left := self._unnamed(seen, named):
            raise WrongReport(f"{claim} {sorted(left)} are there")
        for name in WEIGHTS:
            if (self.stores.clone / f"{name}.dvc").exists():
                raise WrongReport(f"{claim} {name}.dvc is there")

    def check_recovered(self) -> bool:
        """Check that nothing is left half-done; return whether our branch is there."""
        seen = self.look()
        named = seen.check_branches()
        if intents := seen.intents():
            raise HalfState(f"after recovery {sorted(intents)} are left")
        published = self.is_published(seen)
        ours = {self.head, *self.replaced} if published else set()
        strange = seen.refs.keys() - self.refs.keys() - ours - {f"refs/heads/{OTHER}", f"refs/runs/{HELD}"}
        if strange or any(seen.refs.get(ref) != commit for ref, commit in self.refs.items() if ref not in ours):
            raise HalfState(f"refs have changed: {sorted(strange)}")
        if published and (left := (self.replaced - {self.head}) & seen.refs.keys()):
            raise HalfState(f"published, but the branches that it replaces are left: {sorted(left)}")
        stored = seen.identities()
        if lost := self.kept - stored - (self.superseded if published else set()):
            raise HalfState(f"copies that were stored before are lost: {sorted(lost)}")
        over = {(name, key) for name, key in self.superseded & stored if name not in named}
        if unnamed := self._unnamed(seen, named) | over:
            raise HalfState(f"objects are left that nothing names: {sorted(unnamed)}")
        return published

    def _unnamed(self, seen: Snapshot, named: set[str]) -> set[tuple[str, str]]:
        return {(name, key) for name, key in seen.identities() - self.kept if name not in named}

    def check_no_twins(self) -> None:
        """Check that no new object is stored twice."""
        new = [name for name, _ in self.look().identities() - self.kept]
        if twins := {name for name in new if new.count(name) > 1}:
            raise WrongReport(f"stored more than once: {sorted(twins)}")

    def digest(self) -> str:
        """Return a digest of everything that a retry from the clone could depend on.

        It covers both remotes with their hidden parts (temporary files, unfinished uploads, the trash), every byte of
        the clone's work tree, `.git` and DVC's folder, and this process's tables. Left out, or made equal, are:

        - Git's objects under their own names: the name follows from the content, so that one more object changes no
          result. Files with other names among them (a lock, half an object) count.
        - Random names (16 hex digits: an intent, a clone that contacts its remotes for the first time) and the commits
          of such an intent, which the mirror keeps until the next fetch.
        - Times and process ids: reflogs, the number in DVC's lock files, the times of files, the nonce of a held run.
          Its owner counts: this process, or one that has ended.
        - This process's memory of refs that are gone: no name is used twice. `DVC_SITE_CACHE_DIR`, which all faults
          share as all clones of a machine do: its entries are found by inode and modification time.
        """
        seen = self.stores.refs()
        tables = (sorted(lease_module.ALIVE), sorted(ref for _, ref in remotes_module._SEEN if ref in seen))
        held = [(ref, self._held(commit)) for ref, commit in seen.items() if ref.startswith("refs/runs/")]
        files = [
            (_without_random_names(path), _content(content_of(file), path), file.lstat().st_mode)
            for path, file in (*walk(self.stores.origin), *walk(self.stores.clone))
            if not NAMED_BY_CONTENT.search(path)
        ]
        full_state = (tables, held, sorted(files), self.remote.full_state())
        return hashlib.sha256(repr(full_state).encode()).hexdigest()

    def _held(self, commit: str) -> str:
        record = dict(_record(self.stores.origin, commit))
        del record["nonce"]
        mine = record["owner"].pop("process") == journal.process_name(os.getpid())
        return _without_random_names(json.dumps([record, mine]))


NAMED_BY_CONTENT = re.compile(
    r"/logs(/|$)|/objects/([0-9a-f]{2}(/[0-9a-f]{38})?|pack/pack-[0-9a-f]{40}\.(pack|idx|rev|promisor))$"
)


def _without_random_names(text: str) -> str:
    return re.sub(r"\b[0-9a-f]{16}\b", "#", text)


def _content(content: bytes, path: str) -> str:
    text = _without_random_names(content.decode("latin-1"))
    if "/.dvc/tmp/" in path:
        return re.sub(r"\d+", "#", text)
    return str(len(text)) if re.search(r"/refs/(intents|runs)/[0-9a-z-]+$", path) else text


# ── sweeping ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def prepare(stores: Stores, scenario: Scenario, remote: DvcRemote) -> None:
    """Create the template that each fault of a sweep starts from, and load the modules that child processes need."""
    import tqdm

    tqdm.tqdm.monitor_interval = 0  # its thread would not survive a fork
    for name in ("rescuer", "peer"):
        clone = stores.clone_again(name)
        write_run(clone)
        remote.connect(clone)
    clones = (stores.folder / "rescuer", stores.folder / "peer", stores.clone)
    for clone in clones:
        shutil.rmtree(clone / ".git" / "logs", ignore_errors=True)
    for clone in clones[: 2 if scenario.cold else 3]:
        recover(clone, say=str)
    _load_everything(stores, remote)
    scenario.prepare(stores, remote)
    if scenario.refused:
        refuse(stores, f"refs/heads/{BRANCH}|refs/heads/{CHECKPOINT}")
    shutil.rmtree(_template(stores), ignore_errors=True)
    shutil.copytree(stores.folder, _template(stores))
    remote.keep()


def _template(stores: Stores) -> Path:
    return stores.folder.with_name(f"{stores.folder.name}-template")


def _load_everything(stores: Stores, remote: DvcRemote) -> None:
    """Publish once and delete everything again, so that every library is loaded before the first fork."""
    clone = stores.clone_again("warm")
    write_run(clone)
    remote.connect(clone)
    publish(clone)
    run_git("update-ref", "-d", f"refs/heads/{BRANCH}", cwd=stores.origin)
    shutil.rmtree(clone)
    remote.clear()


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
    remote = remote or FolderRemote(stores)
    prepare(stores, scenario, remote)
    with pytest.MonkeyPatch.context() as patch:
        if switch:
            switch(patch)
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
                sweeps.counts["calls"] += trial.calls
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
            from_refusal=scenario.refused and not scenario.whole,
            peer=world.peer,
            remote=world.remote if kind.on_the_wire else None,
        )
        self.reached = self.retried = False
        self._report = world.stores.folder / "child.txt"

    @property
    def call(self) -> str:
        """Return the call that was broken."""
        if self.kind.kills:
            return self._child_output().rpartition(KILLED)[2]
        return self.injector.counted[self.injector.at - 1] if self.injector.reached else ""

    @property
    def calls(self) -> int:
        """Return the number of calls of a run that did not reach its fault."""
        return int(COUNTED.findall(self._child_output())[-1]) if self.kind.kills else len(self.injector.counted)

    def _child_output(self) -> str:
        return self._report.read_text(encoding="utf-8") if self._report.exists() else ""

    def run(self) -> None:
        """Run the scenario with its fault, recover, retry, and check after each."""
        world, scenario = self.world, self.world.scenario
        error = self._do()
        world.check_models()
        seen = world.look()
        seen.check_branches()
        wrong: WrongReport | None = None
        try:
            self._check_outcome(error, seen)
        except WrongReport as caught:  # raised last: a half-state found later is worse
            wrong = caught
        if self.kind.arrives == "before":
            self.injector.deliver()
            world.look().check_branches()
        if world.peer is not None:
            status, world.peer = world.peer.finish(), None
            world.look().check_branches()
            if status != 0:
                report = (world.stores.folder / "peer.txt").read_text(encoding="utf-8")
                wrong = wrong or WrongReport(f"the other run failed: {report[-500:]}")
        self._recover()
        published = world.check_recovered()
        if self.kind.arrives == "after":
            self.injector.deliver()
            world.look().check_branches()
            self._recover()
            published = world.check_recovered()
        if scenario.refused:
            world.stores.remove_hook("pre-receive")
        if self._is_new():
            self._retry(published)
        if wrong is not None:
            raise wrong

    def _do(self) -> Exception | None:
        world, scenario = self.world, self.world.scenario
        publish_it = scenario.publishing(world.stores.clone)

        def act() -> None:
            with self.injector.installed():
                if scenario.recovers:
                    recover(world.rescuer, older_than=0, say=str)
                else:
                    publish_it()

        def act_and_count() -> None:
            try:
                act()
            finally:
                os.write(2, f"\ncalls: {len(self.injector.counted)}\n".encode())

        if self.kind.kills:
            status = end(start(act_and_count, self._report), self._report)
            self.reached = status == -signal.SIGKILL
            if not self.reached and status != int(scenario.refused):
                raise WrongReport(f"without a fault: {self._child_output()[-2000:]}")
            return None
        error = None
        try:
            act()
        except Died:
            pass
        except Exception as caught:  # noqa: BLE001  `_check_outcome` checks its class
            error = caught
        self.reached = self.injector.reached
        return error

    def _check_outcome(self, error: Exception | None, seen: Snapshot) -> None:
        world, scenario = self.world, self.world.scenario
        if error is not None:
            if not self.reached and not scenario.refused:
                raise WrongReport(f"without a fault it raises {error!r}")
            if self.kind.name == MEANWHILE.name and not scenario.refused:
                raise WrongReport(f"nothing failed, but it raises {error!r}")
            world.check_error(error, seen)
        elif self.kind.kills or self.kind.dies or scenario.recovers:
            pass
        elif not world.is_published(seen):
            raise WrongReport("the call succeeds, but there is no branch")
        elif any(OURS in ref and intent["state"] != "cleaning" for ref, intent in seen.intents().items()):
            raise HalfState("the call succeeds, but its intent is left")

    def _recover(self) -> None:
        try:
            left = recover(self.world.rescuer, older_than=0, say=str)
        except RunError as error:
            raise HalfState(f"recovery fails: {str(error)[:500]}") from error
        if left:
            raise HalfState(f"recovery leaves {left} intents")

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
                published = world.scenario.publishing(world.stores.clone)()
            except Exception as error:
                raise HalfState(f"a retry fails: {type(error).__name__}: {str(error)[:500]}") from error
            if published.before is not before:
                raise WrongReport(f"a retry reports {'an' if published.before else 'no'} earlier publication")
        if not world.check_recovered():
            raise HalfState("a retry does not publish")
        world.check_no_twins()
        world.check_models()
