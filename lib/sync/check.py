"""Check both remotes and report what is wrong with them, without writing or deleting anything.

Guarantees: checks every branch and tag with its whole history, every intent, and every object on the DVC remote with
its content: a folder's files are read, Drive and S3 are asked for the MD5 (S3 knows none for a copy that was sent in
parts or encrypted by a key service). Runs may continue meanwhile: a branch that moves is skipped, and an object that
seems missing or unnamed is looked up once more before it is reported.

Cannot: see an object that is replaced during the check, or what another repository on the same DVC remote names. Where
the remote is marked as the other repository's, objects that no ref of this one names are skipped. Where it is marked as
this one's, the other's objects are reported as unnamed; only the other repository can tell whether they are needed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from lib.remotes.credentials import Credentials
from lib.sync import intent as journal
from lib.sync.intent import StoredObject
from lib.sync.refs import SeenIntent
from lib.sync.remotes import EVERYTHING, Remotes, open_remotes
from lib.sync.stores.base import StoredCopy, mismatch

Kind = Literal["missing", "damaged", "unnamed", "twins", "expired", "unreadable", "foreign"]
FOREIGN = (
    "the objects of a publication that is rolled back stay there. If no other repository uses this DVC remote any "
    "more, delete the files kaggle-training-owner-* in its folder"
)
Stored = Mapping[str, Sequence[StoredCopy]]
Say = Callable[[str], object]


@dataclass(frozen=True)
class Finding:
    """One result of a check: its kind, what was found where, and what to do."""

    kind: Kind
    what: str
    remedy: str

    @property
    def is_wrong(self) -> bool:
        """Return whether the finding is an error rather than a remark.

        Twins are two correct copies of one object, and a DVC remote may be shared: both are only remarks.
        """
        return self.kind not in ("twins", "foreign")


@dataclass(frozen=True)
class Checked:
    """The result of a check: how much was checked, and what was found."""

    refs: int
    objects: int
    intents: int
    findings: tuple[Finding, ...]

    @property
    def is_healthy(self) -> bool:
        """Return whether nothing is wrong."""
        return not any(finding.is_wrong for finding in self.findings)

    def to_json(self) -> str:
        """Return the whole result as JSON text."""
        return json.dumps({"healthy": self.is_healthy, **asdict(self)}, indent=2)


def check(
    root: Path, credentials: Credentials | None = None, *, older_than: float = journal.LEASE, say: Say = print
) -> Checked:
    """Check both remotes of the clone at `root`, and return what was found.

    Intents are watched for `older_than` seconds: one that moves belongs to a live run. Raises `SyncError` if a remote
    cannot be read.
    """
    with open_remotes(root, credentials or Credentials()) as remotes:
        intents = _watch(remotes, older_than, say)
        stored = remotes.objects.survey()
        # refs are read after the survey: each object that it saw is by now named by an intent or a newer branch, or was
        # rolled back
        announced = [seen.record for seen in remotes.refs.read_intents()] + [seen.record for seen, _ in intents]
        heads = remotes.refs.list_refs(*EVERYTHING)
        published = remotes.refs.published_objects(*EVERYTHING)
        named = remotes.refs.named_objects(*EVERYTHING)
        listings = {oid for oid in named if oid.endswith(".dir") and oid in stored}
        damaged = {oid for oid in listings if any(mismatch(StoredObject(oid, -1), copy) for copy in stored[oid])}
        parts = {oid: remotes.parts_of(oid) for oid in listings - damaged}
        named = named.union(*parts.values())
        for record in filter(None, announced):
            named |= {item.oid for item in record.objects} | set(record.superseded)
        foreign = remotes.is_foreign()
        # a damaged listing may name any object, so that no object is certainly unnamed
        unnamed = set() if foreign or damaged else stored.keys() - named
        wanted = {item.oid for outputs in published.values() for item in outputs.values()}.union(*parts.values())
        doubtful = unnamed | (wanted - stored.keys())
        again = {oid: list(copies.values()) for oid, copies in remotes.objects.look(doubtful).items()}
        stored = {oid: copies for oid, copies in stored.items() if oid not in doubtful} | again
        after = remotes.refs.list_refs(*EVERYTHING)
        published = {ref: items for ref, items in published.items() if heads.get(ref) == after.get(ref)}
        findings = [
            *([Finding("foreign", remotes.kept_because, FOREIGN)] if foreign else ()),
            *_check_branches(published, parts, stored),
            *_check_objects(unnamed, stored),
            *_check_intents(intents),
        ]
        return Checked(len(published), len(stored), len(intents), tuple(findings))


def _watch(remotes: Remotes, seconds: float, say: Say) -> list[tuple[SeenIntent, bool]]:
    """Return each intent, and whether its ref has not moved for `seconds`."""
    first = {seen.ref: seen.commit for seen in remotes.refs.read_intents()}
    if not first:
        return []
    say(f"Watching {len(first)} unfinished publications for {seconds:.0f} s: those of live runs move …")
    time.sleep(seconds)
    return [(seen, first.get(seen.ref) == seen.commit) for seen in remotes.refs.read_intents()]


def _check_branches(
    published: Mapping[str, Mapping[str, StoredObject]], parts: Mapping[str, set[str]], stored: Stored
) -> Iterator[Finding]:
    push = "push it from a clone that has it (`dvc push`), or delete the branch"
    for ref, items in published.items():
        for path, item in sorted(items.items()):
            # a directory listing contains no sizes: its files can be checked only for presence and MD5
            files = [StoredObject(oid, -1) for oid in sorted(parts.get(item.oid, ()))]
            for wanted in (item, *files):
                if wanted.oid not in stored:
                    yield Finding("missing", f"{ref}: {path} needs {wanted.oid}, which is not there", push)
                for wrong in filter(None, (mismatch(wanted, copy) for copy in stored.get(wanted.oid, ()))):
                    yield Finding("damaged", f"{ref}: {path} needs {wanted.oid}, and a copy of it {wrong}", push)


def _check_objects(unnamed: Collection[str], stored: Stored) -> Iterator[Finding]:
    for oid, copies in sorted(stored.items()):
        if oid in unnamed:
            size = sum(copy.size for copy in copies)
            remedy = "if no other repository uses this DVC remote, delete it by hand"
            yield Finding("unnamed", f"{oid} ({size} bytes) is named by no commit and no intent", remedy)
        if len(copies) > 1:
            yield Finding("twins", f"{oid} is stored {len(copies)} times", "nothing: every copy is correct")


def _check_intents(intents: Sequence[tuple[SeenIntent, bool]]) -> Iterator[Finding]:
    for seen, is_still in intents:
        if seen.record is None:
            remedy = "update this project and check again"
            yield Finding("unreadable", f"{seen.ref} was written by another version of this project", remedy)
        elif is_still:
            what = "clean-up after" if seen.record.state == "cleaning" else "publication of"
            expired = f"{seen.ref}: the process of the {what} {seen.record.branch} is dead"
            yield Finding("expired", expired, "run `python -m lib recover`")
