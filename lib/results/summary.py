"""Show the results of a run to the user: summary, metrics and images."""

from __future__ import annotations

import time

from lib.progress import duration
from lib.results.evaluate import Evaluated
from lib.results.report import (
    METRICS_HEADERS,
    Results,
    describe_end,
    durations,
    list_images,
    list_missing,
)
from lib.session import Session
from lib.tables import as_text, make_table

SHOWN_WIDTH = 900  # pixels of an image in the notebook


def show_summary(session: Session, results: Results) -> None:
    """Print the summary of a published run: its state, metrics, step times, branch and files."""
    experiment, folder, trained, end = session.experiment, session.artifacts, results.trained, time.time()
    how = {"finished": "is trained and", "interrupted": "is interrupted and", "failed": "has failed and is"}
    print(f"{experiment.about.title} ({experiment.name}) {how[trained.state]} published.\n")
    if trained.reason:
        print(f"Warning: the training {describe_end(trained)}.")
    for what in list_missing(results):
        print(f"Warning: something is missing: {what}")
    show_metrics(results.evaluated)
    times = {**durations(session.steps, end), "Together": end - session.steps[0][1]}
    rows = [(title, duration(seconds)) for title, seconds in times.items()]
    print(as_text(make_table(("Step", "Time"), rows, title="Where the time went")))
    images = "\n           ".join(str(folder / path) for path, _ in list_images(folder))
    print(
        f"Branch:    {session.branch}\n"
        f"W&B:       {results.tracking.address}\n"
        f"Card:      {folder / 'README.md'}\n"
        f"Images:    {images or 'none'}\n\n"
        f"To bring the model to a clone of {session.repository}:\n"
        f"  git fetch origin {session.branch}\n"
        f"  git checkout {session.branch}\n"
        "  dvc pull\n"
        f"It is then {experiment.artifacts}/train/weights/best.pt. Or, without leaving the branch that you are on:\n"
        f"  python -m lib fetch {session.branch}",
        flush=True,
    )


def show_metrics(evaluated: Evaluated) -> None:
    """Print the metrics as a table, and the corner errors on the test split."""
    print(as_text(make_table(METRICS_HEADERS, evaluated.metrics.rows(), title="Metrics of best.pt")))
    corners = evaluated.metrics.test and evaluated.metrics.test.corners
    if corners:
        pixels = {"mean": corners.mean_px, "median": corners.median_px, "95 of 100 within": corners.p95_px}
        off = ", ".join(f"{name} {value:.1f} px" for name, value in pixels.items() if value is not None)
        print(f"Corners on test: {corners.found} of {corners.objects} objects found{off and '; off by: '}{off}")


def show_images(session: Session) -> None:
    """Display a run's images in the notebook, each below its caption."""
    from IPython.display import Image, Markdown, display

    folder = session.artifacts
    for path, title in list_images(folder):
        display(Markdown(f"**{title}**"), Image(filename=str(folder / path), width=SHOWN_WIDTH, alt=title))
