"""Read the state of every experiment from the Git remote alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lib.errors import BranchError
from lib.remotes.credentials import Credentials
from lib.results.published import HEADS, RUNS, AnyRecord, find_own
from lib.results.record import Metrics, RunRecord, parse
from lib.sync import ASKS, STOPS, Refs
from lib.sync.refs import EARLIER
from lib.tables import as_text, make_table
from lib.train.checkpoints import Record

SHOWN = ("mAP50", "mean_px")
"""The figures of the test split that get a column, for every head of a run's network."""


@dataclass(frozen=True)
class Entry:
    """One ref and the state that it records."""

    experiment: str
    """`module/name`."""
    state: str
    """`finished`, `stopped`, `interrupted` or `failed`: a published run; `checkpoint`; `session`: a session that holds
    the experiment; `publishing`: one that is publishing, or died meanwhile; `unreadable`. `, asked`: another session
    asks whether this one lives; `, stop asked`: a person wants it to stop. `stop asked` alone: it ended unpublished."""
    ref: str
    epochs: str = ""
    """Completed epochs and requested epochs: `done/requested`."""
    when: datetime | None = None
    """The time at which a run started or a checkpoint was saved."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Measured values by their full names, such as `test/box/mAP50`."""

    def as_dict(self) -> dict[str, Any]:
        """Return the entry as JSON-serializable values."""
        return {**asdict(self), "when": self.when.isoformat() if self.when else None}


def read_status(root: Path, credentials: Credentials) -> list[Entry]:
    """Read all entries from the Git remote of the clone at `root`, sorted by experiment, newest first.

    Raises `GitPushError` if the remote cannot be read.
    """
    refs = Refs(root, credentials)
    published = refs.read_files_of_all(RUNS, "artifacts/*/run.json", "artifacts/*/metrics.json")
    checkpoints = refs.read_files_of_all("refs/heads/kaggle-checkpoint-*", "artifacts/*/checkpoint.json")
    entries = [_read_entry(ref, texts, RunRecord) for ref, texts in published.items()]
    entries += [_read_entry(ref, texts, Record) for ref, texts in checkpoints.items()]
    asked = refs.list_refs(f"{ASKS}*", f"{STOPS}*")
    runs = refs.read_runs()
    for name, run in runs.items():
        state = "session" if run.record else "unreadable"
        if run.record and run.record.publishing:
            state = "publishing"
        state += ", asked" if f"{ASKS}{name}" in asked else ""
        state += ", stop asked" if f"{STOPS}{name}" in asked else ""
        entries.append(Entry(run.record.name if run.record else name, state, f"refs/runs/{name}"))
    stopped = {ref: ref.removeprefix(STOPS) for ref in asked if ref.startswith(STOPS)}
    entries += [Entry(name, "stop asked", ref) for ref, name in stopped.items() if name not in runs]
    entries += [Entry("of another version", "unreadable", ref) for ref in refs.list_refs(*(f"{e}*" for e in EARLIER))]
    return sorted(entries, key=lambda entry: (entry.experiment, -entry.when.timestamp() if entry.when else 0.0))


def _read_entry(ref: str, texts: Mapping[str, str], kind: type[AnyRecord]) -> Entry:
    branch = ref.removeprefix(HEADS)
    try:
        folder, record = find_own(branch, texts, kind)
        metrics = parse(Metrics, texts.get(f"{folder}/train/metrics.json", "{}"))
    except (BranchError, ValueError):
        return Entry(branch, "unreadable", ref)
    if isinstance(record, RunRecord):
        state, done, when = record.state, metrics.epochs, record.started
    else:
        state, done, when = "checkpoint", record.epoch, record.saved
    values = record.experiment
    epochs = f"{'?' if done is None else done}/{values['training']['epochs']}"
    return Entry(f"{values['module']}/{values['name']}", state, ref, epochs, when, metrics.flat())


def show_status(entries: Sequence[Entry], now: datetime | None = None) -> str:
    """Return the entries as a table for the user."""
    if not entries:
        return "No run has been published, and none is under way."
    now = now or datetime.now(UTC)
    found = {key: key.split("/") for entry in entries for key in entry.metrics}
    columns = {key: f"{part} {name}" for key, (split, part, name) in found.items() if split == "test" and name in SHOWN}
    rows = []
    for entry in entries:
        measured = [f"{entry.metrics[key]:.3f}" if key in entry.metrics else "" for key in columns]
        age = _age((now - entry.when).total_seconds()) if entry.when else ""
        rows.append((entry.experiment, entry.state, entry.epochs, age, *measured, entry.ref.removeprefix(HEADS)))
    return as_text(make_table(("Experiment", "State", "Epochs", "Age", *columns.values(), "Ref"), rows))


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
