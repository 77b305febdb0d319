"""Show the results of a run to the user: summary, metrics and images."""

from __future__ import annotations

import sys
import time
from typing import Any

from lib.progress import duration
from lib.results.evaluate import Evaluated
from lib.results.report import (
    HEADERS,
    Results,
    commands_to_get,
    describe_end,
    durations,
    list_images,
    list_missing,
    metric_rows,
)
from lib.session import Session

SHOWN_WIDTH = 900  # pixels of an image in the notebook


def show_summary(session: Session, results: Results) -> None:
    """Print the summary of a published run: its state, metrics, step times, branch and files."""
    from rich.table import Table

    experiment, folder, trained, end = session.experiment, session.artifacts, results.trained, time.time()
    how = {"finished": "trained and ", "interrupted": "interrupted, and ", "failed": "failed, and what there is of it "}
    print(f"{experiment.about.title} ({experiment.name}) is {how[trained.state]}published.\n")
    if trained.reason:
        print(f"Warning: training {describe_end(trained)}.")
    for what in list_missing(results):
        print(f"Warning: something is missing: {what}")
    show_metrics(results.evaluated)
    times = Table("Step", "Time", title="Where the time went", title_justify="left")
    for title, seconds in durations(session.steps, end).items():
        times.add_row(title, duration(seconds))
    times.add_row("Together", duration(end - session.steps[0][1]), style="bold")
    _console().print(times)
    lines = [
        f"Branch:    {session.branch}",
        f"W&B:       {results.tracking.address}",
        f"Card:      {folder / 'README.md'}",
        *(f"{'Pictures:' * (not number):10} {folder / path}" for number, (path, _) in enumerate(list_images(folder))),
        "",
        f"To bring the model to a clone of {session.repository}:",
        *(f"  {command}" for command in commands_to_get(session.branch)),
        f"It is then {experiment.artifacts}/train/weights/best.pt. Or, without leaving the branch that you are on:",
        f"  python -m lib fetch {session.branch}",
    ]
    print("\n".join(lines), flush=True)  # not by rich, which wraps lines: these are for copying


def show_metrics(evaluated: Evaluated) -> None:
    """Print the metrics as a table, and the corner errors on the test split."""
    from rich.table import Table

    table = Table("Split", "Head", "Images", *HEADERS.values(), title="Metrics of best.pt", title_justify="left")
    for cells in metric_rows(evaluated.metrics):
        table.add_row(*cells)
    _console().print(table)
    corners = evaluated.metrics.get("test", {}).get("corners")
    if corners:
        pixels = [(name, corners.get(f"{key}_px")) for name, key in (("mean", "mean"), ("median", "median"))]
        pixels += [("95 of 100 within", corners.get("p95_px"))]
        off = ", ".join(f"{name} {value:.1f} px" for name, value in pixels if value is not None)
        print(f"Corners on test: {corners['found']} of {corners['objects']} objects found{off and '; off by: '}{off}")


def _console() -> Any:  # noqa: ANN401  rich is imported lazily
    from rich.console import Console

    # a fixed width, because a notebook has none of its own; no colours, because a Kaggle log shows none
    return Console(file=sys.stdout, width=110, force_terminal=False, force_jupyter=False, highlight=False)


def show_pictures(session: Session) -> None:
    """Display a run's images in the notebook, each below its caption."""
    from IPython.display import Image, Markdown, display

    folder = session.artifacts
    for path, title in list_images(folder):
        display(Markdown(f"**{title}**"), Image(filename=str(folder / path), width=SHOWN_WIDTH, alt=title))
