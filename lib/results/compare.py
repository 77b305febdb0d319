"""Compare finished runs from the Git remote alone: metrics, differences, and all curves in one image.

Guarantees: only values that the runs themselves recorded are shown; a value that a run did not measure or record is
left empty, never guessed. Neither weights nor datasets are downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.errors import BranchError
from lib.experiment.load import flat
from lib.files import replacing
from lib.results.published import PublishedRun, list_runs, read_published, series_of
from lib.results.record import Metrics
from lib.sync import Refs
from lib.tables import as_text, make_table
from lib.train.curves import Curves, read_curves

MOST = 5  # runs of an experiment that are compared if no branch is named
FILES = ("train/metrics.json", "train/results.csv")
MADE_FROM = ("commit", "dataset", "lock", "versions", "machine", "batch_size", "start")
"""Keys of `run.json` that describe the inputs and the environment of a run, in addition to its experiment."""
COLUMNS, PANEL = 4, (4.0, 2.6)  # curves per row; width and height of a curve in inches
NO_CURVE = ("epoch", "time", "lr/")


@dataclass(frozen=True)
class RunSummary:
    """One of the compared runs: its metrics, its inputs by dotted key, and its curves by name."""

    branch: str
    state: str
    metrics: Mapping[str, float]
    made_from: Mapping[str, Any]
    curves: Curves

    def as_dict(self) -> dict[str, Any]:
        """Return the run as JSON-serializable values, without its curves."""
        return {"branch": self.branch, "state": self.state, "metrics": dict(self.metrics)}


def read_sides(refs: Refs, branches: Sequence[str]) -> list[RunSummary]:
    """Read the runs of `branches`, in order; if it is empty, the newest runs of the experiment trained last.

    Raises `BranchError` for a branch that does not belong to a finished run, and if `branches` is empty and that
    experiment has fewer than two runs.
    """
    return [_side(read_published(refs, branch, *FILES)) for branch in branches or _newest(refs)]


def _newest(refs: Refs) -> list[str]:
    names = list_runs(refs)
    same = [name for name in names if series_of(name) == series_of(names[0])][:MOST]
    if len(same) < 2:  # noqa: PLR2004
        listed = "".join(f"\n  {name}" for name in names[:MOST])
        raise BranchError(
            f"no branch was named, and {'the newest experiment has one run' if names else 'no run is published'}.",
            state="nothing was compared.",
            remedy=f"name the branches to compare; the newest are:{listed}" if names else "train first.",
        )
    return same


def _side(run: PublishedRun) -> RunSummary:
    try:
        metrics = Metrics.model_validate_json(run.texts.get(FILES[0], "{}"))
        curves = read_curves(run.texts.get(FILES[1], ""))
    except ValueError as error:
        raise BranchError(
            f"{run.branch}: {run.folder}: metrics.json or results.csv cannot be read ({error}).",
            state="nothing was compared.",
            remedy="leave that branch out.",
        ) from None
    record = run.record.as_dict()
    record["machine"]["gpus"] = ", ".join(gpu.name for gpu in run.record.machine.gpus) or "none"
    experiment = {key: value for key, value in record["experiment"].items() if key != "description"}
    made_from = experiment | {key: record[key] for key in MADE_FROM if key in record}
    epochs = metrics.model_dump(include={"epochs", "best_epoch"}, exclude_none=True)
    return RunSummary(run.branch, run.record.state, epochs | metrics.flat(), dict(flat(made_from)), curves)


def differences(sides: Sequence[RunSummary]) -> dict[str, list[Any]]:
    """Return the dotted keys in which the runs differ, with the value of each run; None for a value not recorded."""
    keys = dict.fromkeys(key for side in sides for key in side.made_from)
    found = {key: [side.made_from.get(key) for side in sides] for key in keys}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}


def as_json(sides: Sequence[RunSummary], picture: Path) -> str:
    """Return the whole comparison as JSON."""
    runs = [side.as_dict() for side in sides]
    return json.dumps({"runs": runs, "differences": differences(sides), "curves": str(picture)}, indent=2)


def show_sides(sides: Sequence[RunSummary]) -> str:
    """Return the numbered runs, the table of metrics and the table of differences as text for the user."""
    different = {key: list(map(_short, values)) for key, values in differences(sides).items()}
    metrics = dict.fromkeys(key for side in sides for key in side.metrics)
    measured_by = {key: [_figure(side.metrics.get(key)) for side in sides] for key in metrics}
    parts = ["\n".join(f"{number}  {side.branch} ({side.state})" for number, side in enumerate(sides, 1))]
    parts += [_table("Metric", measured_by)] if metrics else ["Nothing was measured."]
    same = "They were made from the same." if len(sides) > 1 else ""
    parts += [_table("Made from", different)] if different else [same]
    return "\n\n".join(filter(None, parts))


def _table(title: str, rows: Mapping[str, Sequence[str]]) -> str:
    numbers = range(1, len(next(iter(rows.values()))) + 1)
    return as_text(make_table((title, *map(str, numbers)), [(key, *cells) for key, cells in rows.items()]))


def _figure(value: float | None) -> str:
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"


def _short(value: object) -> str:
    """Return a value as text; a hash is cut to its beginning."""
    text = "" if value is None else json.dumps(value) if isinstance(value, bool | list) else str(value)
    return f"{text[:12]}…" if len(text) >= 32 and text.removesuffix(".dir").isalnum() else text  # noqa: PLR2004


def draw_curves(sides: Sequence[RunSummary], picture: Path) -> None:
    """Draw each column of `results.csv` as a panel with one line per run; the file is complete or absent."""
    from matplotlib.figure import Figure

    names = list(_panels(sides))
    rows = max(1, -(-len(names) // COLUMNS))
    figure = Figure(figsize=(COLUMNS * PANEL[0], rows * PANEL[1] + 1), layout="constrained")
    for place, name in enumerate(names, 1):
        axes = figure.add_subplot(rows, COLUMNS, place)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        for number, side in enumerate(sides):
            if name in side.curves:
                values = side.curves[name]
                epochs = side.curves.get("epoch", list(range(1, len(values) + 1)))
                axes.plot(epochs, values, color=f"C{number % 10}", marker="." if len(values) == 1 else None)
    lines = [figure.axes[0].plot([], [], color=f"C{number % 10}")[0] for number in range(len(sides))] if names else []
    labels = [f"{number}  {side.branch}" for number, side in enumerate(sides, 1)]
    if names:
        figure.legend(lines, labels, loc="outside upper left", fontsize=8)
    with replacing(picture) as part:
        figure.savefig(part, format="png", dpi=100)


def _panels(sides: Sequence[RunSummary]) -> Iterator[str]:
    """Yield the name of each curve once: metrics first, then losses."""
    found = dict.fromkeys(key for side in sides for key in side.curves if not key.startswith(NO_CURVE))
    yield from sorted(found, key=lambda name: not name.startswith("metrics/"))
