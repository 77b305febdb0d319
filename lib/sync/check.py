"""Check both remotes and report what is wrong with them, without writing or deleting anything.

Guarantees: checks every branch and tag with its whole history, every run's ref, every checkpoint with its files, and
every object on the DVC remote with its content: a folder's files are read, Drive and S3 are asked for the MD5 (S3 knows
none for a copy that was sent in parts or encrypted by a key service). Runs may continue meanwhile: a branch that moves
is skipped, and what seems missing or unnamed is looked up once more before it is reported.

Cannot: see an object that is replaced during the check, judge a branch whose objects are on another DVC remote, or know
what another repository on the same one names; there, objects that no ref of this one names are skipped.
"""

from __future__ import annotations

import configparser
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from lib.remotes.credentials import Credentials
from lib.sync.lock import CHECKPOINTS, short
from lib.sync.record import StoredObject
from lib.sync.refs import EARLIER, SeenRun
from lib.sync.remotes import EVERYTHING, Remotes, named_by, open_remotes
from lib.sync.stores.base import StoredCopy, mismatch

Kind = Literal["missing", "damaged", "unnamed", "twins", "unfinished", "unreadable", "foreign", "elsewhere"]
REMARKS: tuple[Kind, ...] = ("twins", "foreign", "elsewhere", "unfinished")
"""What is reported although nothing is wrong: two correct copies, a shared DVC remote, a branch with another one, and a
run that may be alive."""
Stored = Mapping[str, Sequence[StoredCopy]]


@dataclass(frozen=True)
class Finding:
    """One result of a check: its kind, what was found where, and what to do."""

    kind: Kind
    what: str
    remedy: str

    @property
    def is_wrong(self) -> bool:
        """Return whether the finding is an error rather than a remark."""
        return self.kind not in REMARKS


@dataclass(frozen=True)
class Checked:
    """The result of a check: how much was checked, and what was found."""

    refs: int
    objects: int
    runs: int
    findings: tuple[Finding, ...]

    @property
    def is_healthy(self) -> bool:
        """Return whether nothing is wrong."""
        return not any(finding.is_wrong for finding in self.findings)

    def to_json(self) -> str:
        """Return the whole result as JSON text."""
        return json.dumps({"healthy": self.is_healthy, **asdict(self)}, indent=2)


def check(root: Path, credentials: Credentials | None = None) -> Checked:
    """Check both remotes of the clone at `root`, and return what was found.

    Raises `SyncError` if a remote cannot be read.
    """
    with open_remotes(root, credentials or Credentials()) as remotes:
        stored = remotes.store.survey()
        # refs are read after the survey: each object that it saw is by now declared by a run, named by a newer branch,
        # or rolled back
        runs = remotes.refs.read_runs()
        heads = remotes.refs.list_refs(*EVERYTHING, remotes.refs.identity_ref, *(f"{place}*" for place in EARLIER))
        identity = heads.pop(remotes.refs.identity_ref, "")
        earlier = [ref for ref in heads if ref.startswith(EARLIER)]
        published = remotes.refs.published_objects(*EVERYTHING)
        named = remotes.refs.named_objects(*EVERYTHING)
        listings = {oid for oid in named if oid.endswith(".dir") and oid in stored}
        damaged = {oid for oid in listings if any(mismatch(oid, -1, copy) for copy in stored[oid])}
        parts = {oid: remotes.parts_of(oid) for oid in listings - damaged}
        named = named.union(*parts.values())
        for run in runs.values():
            named |= {copy.oid for copy in run.record.declared} if run.record else set()
        foreign = remotes.repositories() - {short(identity)}
        # a damaged listing may name any object, so that no object is certainly unnamed
        unnamed = set() if foreign or damaged or earlier else stored.keys() - named
        wanted = {item.oid for outputs in published.values() for item in outputs.values()}.union(*parts.values())
        doubtful = unnamed | (wanted - stored.keys())
        stored = {oid: copies for oid, copies in stored.items() if oid not in doubtful} | remotes.store.look(doubtful)
        elsewhere = _elsewhere(remotes)
        after = remotes.refs.list_refs(*EVERYTHING)
        published = {ref: items for ref, items in published.items() if heads.get(ref) == after.get(ref)}
        here = {ref: items for ref, items in published.items() if ref not in elsewhere}
        findings = [
            *(Finding("foreign", f"{remotes.store.name} is shared with the repository {other}", FOREIGN)
              for other in sorted(foreign)),
            *(Finding("elsewhere", f"{ref} has its objects on {elsewhere[ref]}, which was not checked", ELSEWHERE)
              for ref in sorted(elsewhere.keys() & published.keys())),
            *_check_branches(here, parts, stored),
            *_check_checkpoints(remotes),
            *_check_objects(unnamed, stored),
            *_check_runs(runs.values(), earlier),
        ]  # fmt: skip
        return Checked(len(published), len(stored), len(runs), tuple(findings))


FOREIGN = (
    "on a folder or S3, the objects of a publication that is rolled back stay there. If no other repository uses this "
    "DVC remote any more, delete the files kaggle-training-repository-* of the others in its folder"
)
ELSEWHERE = "check it from a clone whose HEAD uses that DVC remote"
PUSH = "push it from a clone that has it (`dvc push`)"


def _elsewhere(remotes: Remotes) -> dict[str, str]:
    """Return {ref: address} of the refs whose commit configures another default DVC remote than HEAD's."""
    texts = remotes.refs.read_files_of_all("refs/heads/*", ".dvc/config") | remotes.refs.read_files_of_all(
        "refs/tags/*", ".dvc/config"
    )
    here = _default_remote(remotes.refs.read_texts(remotes.refs.head(), [".dvc/config"]).get(".dvc/config", ""))
    found = {ref: _default_remote(files.get(".dvc/config", "")) for ref, files in texts.items()}
    return {ref: remotes.redact(address) for ref, address in found.items() if address and address != here}


def _default_remote(text: str) -> str:
    """Return the address of the default remote in the text of a `.dvc/config`; empty without one."""
    config = configparser.RawConfigParser(strict=False)
    try:
        config.read_string(text)
        name = config.get("core", "remote")
        return next(config.get(part, "url") for part in config.sections() if f'remote "{name}"' in part)
    except (configparser.Error, StopIteration):
        return ""


def _check_branches(
    published: Mapping[str, Mapping[str, StoredObject]], parts: Mapping[str, set[str]], stored: Stored
) -> Iterator[Finding]:
    for ref, items in published.items():
        for path, item in sorted(items.items()):
            # a directory listing contains no sizes: its files can be checked only for presence and MD5
            files = [StoredObject(oid=oid, size=-1) for oid in sorted(parts.get(item.oid, ()))]
            for wanted in (item, *files):
                if wanted.oid not in stored:
                    yield Finding("missing", f"{ref}: {path} needs {wanted.oid}, which is not there", PUSH)
                for copy in stored.get(wanted.oid, ()):
                    if wrong := mismatch(wanted.oid, wanted.size, copy):
                        yield Finding("damaged", f"{ref}: {path} needs {wanted.oid}, and a copy of it {wrong}", PUSH)


def _check_checkpoints(remotes: Remotes) -> Iterator[Finding]:
    """Find checkpoints whose files are missing or damaged; one that moves meanwhile is skipped."""
    for ref, texts in remotes.refs.read_files_of_all(f"{CHECKPOINTS}*", "*/checkpoint.json").items():
        entries = [entry for text in texts.values() for entry in named_by(text)]
        copies = {entry["name"]: remotes.store.verify(entry["name"], entry["id"]) for entry in entries}
        if all(copies.values()) or texts != remotes.refs.read_files_of_all(ref + "*", "*/checkpoint.json").get(ref):
            continue
        for name in sorted(name for name, copy in copies.items() if copy is None):
            yield Finding("missing", f"{ref} needs {name}, which is not there", "start the training over")


def _check_objects(unnamed: Collection[str], stored: Stored) -> Iterator[Finding]:
    for oid, copies in sorted(stored.items()):
        if oid in unnamed:
            size = sum(copy.size for copy in copies)
            remedy = "if no other repository uses this DVC remote, delete it by hand"
            yield Finding("unnamed", f"{oid} ({size} bytes) is named by no commit and no run", remedy)
        if len(copies) > 1:
            yield Finding("twins", f"{oid} is stored {len(copies)} times", "nothing: every copy is correct")


def _check_runs(runs: Collection[SeenRun], earlier: Sequence[str]) -> Iterator[Finding]:
    for ref in [*earlier, *(f"refs/runs/{run.name}" for run in runs if run.record is None)]:
        remedy = "run `python -m lib recover` of that version; if it is of no use any more, delete the ref"
        yield Finding("unreadable", f"{ref} was written by another version of this project", remedy)
    for run in runs:
        if run.record is not None and run.record.declared:
            what = f"refs/runs/{run.name}: the session of {run.record.name} is publishing, or has died meanwhile"
            yield Finding("unfinished", what, "run `python -m lib recover`, which asks whether it lives")
