"""Compare finished runs from the Git remote alone: metrics, differences, and all curves in one image.

Guarantees: only values that the runs themselves recorded are shown; a value that a run did not measure or record is
left empty, never guessed. Neither weights nor datasets are downloaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.errors import BranchError
from lib.escape import visible
from lib.experiment.load import flat
from lib.files import replacing
from lib.results.published import PublishedRun, list_runs, read_published
from lib.results.record import Metrics, parse
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


def read_runs(refs: Refs, branches: Sequence[str]) -> list[RunSummary]:
    """Read the runs of `branches`, in order; if it is empty, the newest runs of the experiment trained last.

    Raises `BranchError` for a branch that does not belong to a finished run, and if `branches` is empty and that
    experiment has fewer than two runs.
    """
    return [_summarize(read_published(refs, branch, *FILES)) for branch in branches or _newest(refs)]


def _newest(refs: Refs) -> list[str]:
    names = list_runs(refs)
    series = [re.sub(r"-\d{8}-\d{6}$", "", name) for name in names]  # all runs of one experiment share it
    same = [name for name, each in zip(names, series, strict=True) if each == series[0]][:MOST]
    if len(same) < 2:  # noqa: PLR2004
        listed = "".join(f"\n  {name}" for name in names[:MOST])
        raise BranchError(
            f"no branch was named, and {'the newest experiment has one run' if names else 'no run is published'}.",
            state="nothing was compared.",
            remedy=f"name the branches to compare; the newest are:{listed}" if names else "train first.",
        )
    return same


def _summarize(run: PublishedRun) -> RunSummary:
    try:
        metrics = parse(Metrics, run.texts.get(FILES[0], "{}"))
        curves = read_curves(run.texts.get(FILES[1], ""))
    except ValueError as error:
        raise BranchError(
            f"{run.record.branch}: {run.folder}: metrics.json or results.csv cannot be read ({error}).",
            state="nothing was compared.",
            remedy="leave that branch out.",
        ) from None
    record = run.record.as_dict()
    record["machine"]["gpus"] = ", ".join(gpu.name for gpu in run.record.machine.gpus) or "none"
    experiment = {key: value for key, value in record["experiment"].items() if key != "description"}
    made_from = experiment | {key: record[key] for key in MADE_FROM if key in record}
    epochs = metrics.model_dump(include={"epochs", "best_epoch"}, exclude_none=True)
    return RunSummary(run.record.branch, run.record.state, epochs | metrics.flat(), dict(flat(made_from)), curves)


def differences(runs: Sequence[RunSummary]) -> dict[str, list[Any]]:
    """Return the dotted keys in which the runs differ, with the value of each run; None for a value not recorded."""
    keys = dict.fromkeys(key for run in runs for key in run.made_from)
    found = {key: [run.made_from.get(key) for run in runs] for key in keys}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}


def as_json(runs: Sequence[RunSummary], image: Path) -> str:
    """Return the whole comparison as JSON."""
    listed = [{"branch": run.branch, "state": run.state, "metrics": run.metrics} for run in runs]
    return json.dumps({"runs": listed, "differences": differences(runs), "curves": str(image)}, indent=2)


def show_runs(runs: Sequence[RunSummary]) -> str:
    """Return the numbered runs, the table of metrics and the table of differences as text for the user."""
    numbers = [str(number) for number, _ in enumerate(runs, 1)]
    metrics = [
        (key, *(_figure(run.metrics.get(key)) for run in runs))
        for key in dict.fromkeys(key for run in runs for key in run.metrics)
    ]
    different = [(key, *map(_short, values)) for key, values in differences(runs).items()]
    parts = ["\n".join(f"{number}  {run.branch} ({run.state})" for number, run in zip(numbers, runs, strict=True))]
    parts += [as_text(make_table(("Metric", *numbers), metrics)) if metrics else "No run was measured."]
    if different:
        parts += [as_text(make_table(("Made from", *numbers), different))]
    elif len(runs) > 1:
        parts += ["The runs were made from the same code, data and configuration."]
    return "\n\n".join(parts)


def _figure(value: float | None) -> str:
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"


def _short(value: object) -> str:
    """Return a value as text; a hash is cut to its beginning."""
    text = "" if value is None else json.dumps(value) if isinstance(value, bool | list) else str(value)
    return f"{text[:12]}…" if len(text) >= 32 and text.removesuffix(".dir").isalnum() else text  # noqa: PLR2004


def draw_curves(runs: Sequence[RunSummary], image: Path) -> None:
    """Draw each column of `results.csv` as a panel with one line per run; the file is complete or absent."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    names = dict.fromkeys(name for run in runs for name in run.curves if not name.startswith(NO_CURVE))
    rows = max(1, -(-len(names) // COLUMNS))
    figure = Figure(figsize=(COLUMNS * PANEL[0], rows * PANEL[1] + 1), layout="constrained")
    for place, name in enumerate(sorted(names, key=lambda name: not name.startswith("metrics/")), 1):
        axes = figure.add_subplot(rows, COLUMNS, place)
        axes.set_title(visible(name), fontsize=9, parse_math=False)  # `$` starts a formula
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        for number, run in enumerate(runs):
            if values := run.curves.get(name):
                epochs = run.curves.get("epoch", list(range(1, len(values) + 1)))
                axes.plot(epochs, values, color=f"C{number % 10}", marker="." if len(values) == 1 else None)
    lines = [
        Line2D([], [], color=f"C{number % 10}", label=f"{number + 1}  {run.branch}") for number, run in enumerate(runs)
    ]
    figure.legend(handles=lines, loc="outside upper left", fontsize=8)
    with replacing(image) as part:
        figure.savefig(part, format="png", dpi=100)
