"""Check both remotes and report what is wrong with them, without writing or deleting anything.

Guarantees: checks every branch and tag with its whole history, every run's ref, every checkpoint with its files, and
every object on the DVC remote with its content, as far as the store reports an MD5. Runs may continue meanwhile: a
branch that moves is skipped, and what seems missing, unnamed or waste is looked up once more before it is reported. An
output that the default DVC remote lacks is missing only if `dvc pull` would not find it either.
Cannot: see an object that is replaced during the check, judge a branch with another default DVC remote, read the files
that only an output's own remote, the layout of DVC 2 or an import's source has (they are looked for), or know what
another repository or version of this project names: where there is one, objects that no ref names are skipped.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Literal, NamedTuple

from lib.errors import RemoteError
from lib.remotes.credentials import Credentials
from lib.remotes.dvc_config import CONFIG, default_address
from lib.remotes.repository import StoredObject, outputs_of
from lib.sync.lock import CHECKPOINTS, short
from lib.sync.record import RUNS
from lib.sync.refs import EARLIER, as_sync_errors
from lib.sync.remotes import EVERYTHING, Remotes, named_by, open_remotes
from lib.sync.stores.base import StoredCopy, mismatch
from lib.sync.stores.places import Missing, find_missing

Kind = Literal["missing", "damaged", "unnamed", "twins", "waste", "unfinished", "unreadable", "foreign", "elsewhere"]
REMARKS: tuple[Kind, ...] = ("twins", "waste", "unfinished", "foreign", "elsewhere")
"""What is reported although nothing is wrong: several copies, files of dead sessions, runs that may be alive, a shared
DVC remote, and branches with another one."""
Stored = Mapping[str, Sequence[StoredCopy]]


class _Output(NamedTuple):
    """An output that a commit names: its path, its object, and the path and the text of its `.dvc` file."""

    path: str
    item: StoredObject
    file: str
    text: str


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
    credentials = credentials or Credentials()
    with open_remotes(root, credentials) as remotes, as_sync_errors("checking", credentials.redact):
        return _check(remotes)


def _check(remotes: Remotes) -> Checked:
    refs, store = remotes.refs, remotes.store
    stored = store.survey()
    # refs are read after the survey: each object that it saw is by now declared by a run, named by a newer branch,
    # or rolled back
    runs = refs.read_runs()
    heads = refs.list_refs(*EVERYTHING, refs.identity_ref, *(f"{place}*" for place in EARLIER))
    identity = short(heads.pop(refs.identity_ref, ""))
    texts, named = refs.read_files_of_all(EVERYTHING, "*.dvc", CONFIG), refs.named_objects(*EVERYTHING)
    published, elsewhere = {ref: _outputs(files) for ref, files in texts.items()}, _elsewhere(remotes, texts)
    listings = {oid for oid in named if oid.endswith(".dir") and oid in stored}
    damaged = {oid for oid in listings if any(mismatch(oid, -1, copy) for copy in stored[oid])}
    parts = {oid: remotes.parts_of(oid) for oid in listings - damaged}
    records = {name: run.record for name, run in runs.items() if run.record}
    named = named.union(*parts.values(), (copy.oid for record in records.values() for copy in record.declared))
    others = sorted(remotes.repositories() - {identity})
    unreadable = [ref for ref in heads if ref.startswith(EARLIER)]
    unreadable += [f"{RUNS}{name}" for name in runs if name not in records]
    # these may name any object, so that no object is certainly unnamed
    unnamed = set() if others or unreadable or damaged else stored.keys() - named
    here = {ref: outputs for ref, outputs in published.items() if ref not in elsewhere}
    wanted = {output.item.oid for outputs in here.values() for output in outputs}
    wanted = wanted.union(*(parts.get(oid, ()) for oid in wanted))
    doubtful = unnamed | (wanted - stored.keys())
    stored = {oid: copies for oid, copies in stored.items() if oid not in doubtful} | store.look(doubtful)
    after = refs.list_refs(*EVERYTHING)
    moved = {ref for ref in published if heads.get(ref) != after.get(ref)}
    findings = (
        *(Finding("foreign", f"{store.name} is shared with the repository {other}", FOREIGN) for other in others),
        *(Finding("unreadable", f"{ref} was written by another version of this project", UPDATE)
          for ref in unreadable),
        *(Finding("elsewhere", f"{ref} has its objects on {elsewhere[ref]}, which was not checked", ELSEWHERE)
          for ref in sorted(published.keys() & elsewhere.keys() - moved)
          if published[ref] or ref.startswith(CHECKPOINTS)),
        *_check_branches(remotes, {ref: here[ref] for ref in here if ref not in moved}, parts, stored),
        *_check_checkpoints(remotes, elsewhere),
        *(Finding("waste", f"{name} is of a session that has ended, and no checkpoint names it", RECOVER)
          for name in remotes.waste(identity) if name in store.flat(name)),  # else its session has just deleted it
        *_check_objects(unnamed, stored),
        *(Finding("unfinished", f"{RUNS}{name}: the session of {record.name} is publishing, or has died meanwhile",
                  f"{RECOVER}, which asks whether it lives")
          for name, record in records.items() if record.declared),
    )  # fmt: skip
    return Checked(len(published), len(stored), len(runs), findings)


FOREIGN = (
    "on a folder or S3, the objects of a publication that is rolled back stay there. If no other repository uses this "
    "DVC remote any more, delete the files kaggle-training-repository-* of the others in its folder"
)
UPDATE = "run `python -m lib recover` of that version; if it is of no use any more, delete the ref"
ELSEWHERE = "check it from a clone whose HEAD uses that DVC remote"
PUSH = "push it from a clone that has it (`dvc push`)"
REPLACE = "if a clone has it, delete the damaged copy on the DVC remote, then push it from there (`dvc push`)"
RETRAIN = "resuming is not possible: train with -p session.resume never, which replaces this checkpoint"
RECOVER = "run `python -m lib recover`"
UNNAMED = (
    "delete it by hand, but only if no other repository uses this DVC remote, and no clone has a commit that names it "
    "and is not pushed yet"
)


def _outputs(files: Mapping[str, str]) -> list[_Output]:
    """Return the outputs that the `.dvc` files ({path: text}) of a commit name, sorted by path."""
    found = [_Output(path, item, *file) for file in files.items() for path, item in outputs_of(*file)]
    return sorted(found, key=lambda output: output.path)


def _elsewhere(remotes: Remotes, texts: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Return {ref: address} of the refs whose commit configures another default DVC remote than HEAD's."""
    here = default_address(remotes.refs.read_texts(remotes.refs.head(), [CONFIG]).get(CONFIG, ""))
    found = {ref: default_address(files.get(CONFIG, "")) for ref, files in texts.items()}
    return {ref: remotes.redact(address) for ref, address in found.items() if address not in ("", here)}


def _ask(remotes: Remotes, output: _Output) -> Missing | None:
    """Return what is missing of an output that the default remote lacks; None if `dvc pull` brings it."""
    try:
        return find_missing(remotes.refs.root, {output.file: output.text}, remotes.redact).get(output.path)
    except RemoteError as error:  # a place that cannot be asked does not end the check
        return Missing(error.what.rstrip("."), error.remedy.rstrip("."))


def _check_branches(
    remotes: Remotes, published: Mapping[str, Sequence[_Output]], parts: Mapping[str, set[str]], stored: Stored
) -> Iterator[Finding]:
    ask = cache(partial(_ask, remotes))  # most branches have the same files
    for ref, outputs in published.items():
        for output in outputs:
            path, item = output.path, output.item
            if item.oid not in stored:
                if missing := ask(output):
                    yield Finding("missing", f"{ref}: {path}: {missing.what}", missing.remedy)
                continue
            # a directory listing contains no sizes: its files can be checked only for presence and MD5
            sizes = {item.oid: item.size} | dict.fromkeys(sorted(parts.get(item.oid, ())), -1)
            for oid, size in sizes.items():
                if oid not in stored:
                    yield Finding("missing", f"{ref}: {path} needs {oid}, which is not there", PUSH)
                for copy in stored.get(oid, ()):
                    if wrong := mismatch(oid, size, copy):
                        yield Finding("damaged", f"{ref}: {path} needs {oid}, and a copy of it {wrong}", REPLACE)


def _check_checkpoints(remotes: Remotes, elsewhere: Collection[str]) -> Iterator[Finding]:
    """Find checkpoints whose files are missing or damaged; one that moves meanwhile is skipped."""
    record = "*/checkpoint.json"
    for ref, texts in remotes.refs.read_files_of_all(f"{CHECKPOINTS}*", record).items():
        found = []
        for file in named_by(texts) if ref not in elsewhere else ():
            copy = remotes.store.verify(file["name"], file["id"])
            if wrong := mismatch(file["md5"], file["size"], copy):
                found.append(Finding("damaged" if copy else "missing", f"{ref}: {file['name']} {wrong}", RETRAIN))
        if found and remotes.refs.read_files_of_all(f"{ref}*", record).get(ref) == texts:
            yield from found


def _check_objects(unnamed: Collection[str], stored: Stored) -> Iterator[Finding]:
    for oid, copies in sorted(stored.items()):
        if oid in unnamed:
            size = sum(copy.size for copy in copies)
            yield Finding("unnamed", f"{oid} ({size} bytes) is named by no commit and no run", UNNAMED)
        if len(copies) > 1:
            yield Finding("twins", f"{oid} is stored {len(copies)} times", "nothing: each publication has its own copy")
