"""Read the state of every experiment from the Git remote alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lib.remotes.credentials import Credentials
from lib.results.published import HEADS, RUNS, UNREADABLE, find_own, measured
from lib.sync import RUN_PLACES, Refs, read_run
from lib.tables import as_text, make_table

SHOWN = ("mAP50", "mean_px")
"""The figures of the test split that get a column, for every head of a run's network."""


@dataclass(frozen=True)
class Entry:
    """One ref and the state that it records."""

    experiment: str
    """`module/name`."""
    state: str
    """`finished`, `interrupted` or `failed`: a published run; `checkpoint`; `session`: a session that holds the
    experiment; `unfinished`: a publication that is in progress or stale; `unreadable`."""
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
    entries = [_run(ref, texts) for ref, texts in published.items()]
    entries += [_checkpoint(ref, texts) for ref, texts in checkpoints.items()]
    for place in RUN_PLACES:
        for ref, texts in refs.read_files_of_all(f"{place}*", "intent.json").items():
            record = read_run(texts.get("intent.json", ""))
            entries.append(
                Entry(ref.removeprefix(place).replace("-", "/", 1), "session" if record else "unreadable", ref)
            )
    for seen in refs.read_intents():
        branch = seen.record.branch if seen.record else "of another version"
        entries.append(Entry(branch, "unfinished" if seen.record else "unreadable", seen.ref))
    newest = sorted(entries, key=lambda entry: entry.when.timestamp() if entry.when else 0.0, reverse=True)
    return sorted(newest, key=lambda entry: entry.experiment)


def _run(ref: str, texts: Mapping[str, str]) -> Entry:
    try:
        folder, run = find_own(ref.removeprefix(HEADS), texts, "run.json")
        metrics = json.loads(texts.get(f"{folder}/train/metrics.json", "{}"))
        experiment = run["experiment"]
        return Entry(
            f"{experiment['module']}/{experiment['name']}",
            run.get("state", "finished"),
            ref,
            f"{metrics.get('epochs', '?')}/{experiment['training']['epochs']}",
            datetime.fromisoformat(run["started"]),
            dict(measured(metrics)),
        )
    except UNREADABLE:
        return Entry(ref.removeprefix(HEADS), "unreadable", ref)


def _checkpoint(ref: str, texts: Mapping[str, str]) -> Entry:
    try:
        _, record = find_own(ref.removeprefix(HEADS), texts, "checkpoint.json")
        experiment = record["experiment"]
        return Entry(
            f"{experiment['module']}/{experiment['name']}",
            "checkpoint",
            ref,
            f"{record['epoch']}/{experiment['training']['epochs']}",
            datetime.fromisoformat(record["saved"]),
        )
    except UNREADABLE:
        return Entry(ref.removeprefix(HEADS), "unreadable", ref)


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
