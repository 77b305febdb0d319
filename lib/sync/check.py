"""Check both remotes and report what is wrong with them; nothing is written or deleted there.

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
from lib.sync.stores.base import StoredCopy, mismatch
from lib.sync.vault import EVERYTHING, Vault, open_vault

Kind = Literal["missing", "damaged", "unnamed", "twins", "expired", "unreadable", "foreign"]
FOREIGN = (
    "what publications of this repository leave when they are undone stays there. If no other repository uses this "
    "DVC remote any more, delete the files kaggle-training-owner-* in its folder"
)
Standing = Mapping[str, Sequence[StoredCopy]]
Say = Callable[[str], object]


@dataclass(frozen=True)
class Finding:
    """One result of a check: its kind, what was found where, and what to do."""

    kind: Kind
    what: str
    remedy: str

    @property
    def is_wrong(self) -> bool:
        """Return whether it is more than a remark.

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
    with open_vault(root, credentials or Credentials()) as vault:
        intents = _watch(vault, older_than, say)
        standing = vault.objects.survey()
        # refs after the survey: what it saw is by now named by an intent or a newer branch, or was rolled back
        announced = [seen.record for seen in vault.refs.read_intents()] + [seen.record for seen, _ in intents]
        heads = vault.refs.list_refs(*EVERYTHING)
        published = vault.refs.published_objects(*EVERYTHING)
        named = vault.refs.named_objects(*EVERYTHING)
        listings = {oid for oid in named if oid.endswith(".dir") and oid in standing}
        broken = {oid for oid in listings if any(mismatch(StoredObject(oid, -1), copy) for copy in standing[oid])}
        parts = {oid: vault.parts_of(oid) for oid in listings - broken}
        named = named.union(*parts.values())
        for record in filter(None, announced):
            named |= {item.oid for item in record.objects} | set(record.superseded)
        foreign = vault.is_foreign()
        # a broken listing may name any object: none can then be called unnamed
        unnamed = set() if foreign or broken else standing.keys() - named
        wanted = {item.oid for outputs in published.values() for item in outputs.values()}.union(*parts.values())
        doubtful = unnamed | (wanted - standing.keys())
        again = {oid: list(copies.values()) for oid, copies in vault.objects.look(doubtful).items()}
        standing = {oid: copies for oid, copies in standing.items() if oid not in doubtful} | again
        after = vault.refs.list_refs(*EVERYTHING)
        published = {ref: items for ref, items in published.items() if heads.get(ref) == after.get(ref)}
        findings = [
            *([Finding("foreign", vault.keeps, FOREIGN)] if foreign else ()),
            *_check_branches(published, parts, standing),
            *_check_objects(unnamed, standing),
            *_check_intents(intents),
        ]
        return Checked(len(published), len(standing), len(intents), tuple(findings))


def _watch(vault: Vault, seconds: float, say: Say) -> list[tuple[SeenIntent, bool]]:
    """Return each intent, and whether it has not moved for `seconds`."""
    first = {seen.ref: seen.commit for seen in vault.refs.read_intents()}
    if not first:
        return []
    say(f"Watching {len(first)} unfinished publications for {seconds:.0f} s: those of living runs move …")
    time.sleep(seconds)
    return [(seen, first.get(seen.ref) == seen.commit) for seen in vault.refs.read_intents()]


def _check_branches(
    published: Mapping[str, Mapping[str, StoredObject]], parts: Mapping[str, set[str]], standing: Standing
) -> Iterator[Finding]:
    push = "push it from a clone that has it (`dvc push`), or delete the branch"
    for ref, items in published.items():
        for path, item in sorted(items.items()):
            # a directory listing holds no sizes: its files can be checked only for presence and MD5
            files = [StoredObject(oid, -1) for oid in sorted(parts.get(item.oid, ()))]
            for wanted in (item, *files):
                if wanted.oid not in standing:
                    yield Finding("missing", f"{ref}: {path} needs {wanted.oid}, which is not there", push)
                for wrong in filter(None, (mismatch(wanted, copy) for copy in standing.get(wanted.oid, ()))):
                    yield Finding("damaged", f"{ref}: {path} needs {wanted.oid}, and a copy of it {wrong}", push)


def _check_objects(unnamed: Collection[str], standing: Standing) -> Iterator[Finding]:
    for oid, copies in sorted(standing.items()):
        if oid in unnamed:
            size = sum(copy.size for copy in copies)
            remedy = "if no other repository uses this DVC remote, delete it by hand"
            yield Finding("unnamed", f"{oid} ({size} bytes) is named by no commit and no intent", remedy)
        if len(copies) > 1:
            yield Finding("twins", f"{oid} stands {len(copies)} times", "nothing: both are right")


def _check_intents(intents: Sequence[tuple[SeenIntent, bool]]) -> Iterator[Finding]:
    for seen, is_still in intents:
        if seen.record is None:
            remedy = "update this project and check again"
            yield Finding("unreadable", f"{seen.ref} was written by another version of this project", remedy)
        elif is_still:
            what = "clean-up after" if seen.record.state == "cleaning" else "publication of"
            died = f"{seen.ref}: the {what} {seen.record.branch} has died"
            yield Finding("expired", died, "run `python -m lib recover`")
