"""Train many experiments as one sweep: skip those already published, run the rest, show their progress.

An engine runs them: a Ray cluster (`engine.py`), or Kaggle (`kaggle.py`).

Guarantees: every experiment is checked before the first run starts, and each run records its complete experiment. An
experiment that the same commit has already trained and published is not trained again. Cannot: reuse a run that
another commit published.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, Self

from rich.live import Live
from rich.table import Table

from lib.experiment.matrix import title_of
from lib.experiment.schema import Experiment
from lib.process import interrupts
from lib.progress import duration
from lib.results.published import find_published
from lib.sweep.worker import Job, Progress
from lib.sync import Refs
from lib.tables import as_text, make_table

EVERY = 30.0  # seconds between two log lines about the same step of a run
DONE, FAILED, NOT_YET = 0, 1, 3  # exit statuses


class Engine(Protocol):
    """What runs the jobs of a sweep, as a context manager."""

    @property
    def pause(self) -> float:
        """Return the seconds between two looks."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def start(self, jobs: Mapping[str, Job], refs: Refs, /) -> None:
        """Take the jobs, whose runs are published to the Git remote of `refs`."""

    def look(self) -> dict[str, Progress]:
        """Return the progress of every run, by name."""

    def stop(self) -> float:
        """Request that every run stops; return the seconds that they have for it."""


# ── progress ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def run_sweep(
    jobs: Mapping[str, Job], refs: Refs, engine: Engine, show: Callable[[Mapping[str, Progress]], object],
    *, once: bool = False,
) -> None:  # fmt: skip
    """Run all jobs and call `show` with their progress until each has ended; Ctrl-C or SIGTERM requests that they stop.

    With `once`, look one time. Raises `KeyboardInterrupt` on a second Ctrl-C, and when runs do not stop within the time
    that the engine gives them. A cluster then kills them when the driver ends.
    """
    engine.start(jobs, refs)
    deadline = 0.0
    # Ray's client and destructors swallow an exception that is raised within them; on SIGTERM Ray would end the driver
    # at once, and kill its runs
    with interrupts(signal.SIGINT, signal.SIGTERM) as received:
        while not deadline or time.monotonic() < deadline:
            try:
                seen = engine.look()
                show(seen)
                if once or all(progress.has_ended for progress in seen.values()):
                    return
                if not received or deadline:
                    time.sleep(engine.pause)
            except KeyboardInterrupt:
                if deadline:
                    raise
            if received and not deadline:
                deadline = time.monotonic() + engine.stop()
    raise KeyboardInterrupt


class Scoreboard:
    """Shows the progress of a sweep, as a context manager: a live table if `watched`, else lines.

    The lines are written to `log` in both cases. `before` maps the names of already published runs to their branches.
    """

    def __init__(self, log: Path, before: Mapping[str, str], *, watched: bool) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log.open("a", encoding="utf-8", buffering=1)
        self.progress = {name: Progress("published", branch=branch) for name, branch in before.items()}
        self._logged: dict[str, tuple[tuple[str, ...], str, float]] = {}  # facts, line and time of a run's last line
        self._live = Live(auto_refresh=False) if watched else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        for name, progress in self.progress.items():
            self._line(f"{name}: already published as {progress.branch}")
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()
        self._log.close()

    def show(self, seen: Mapping[str, Progress]) -> None:
        """Show the progress of the runs: log a new step at once, other changes at most every `EVERY` seconds."""
        self.progress |= seen
        if self._live:
            self._live.update(table(self.progress), refresh=True)
        now = time.monotonic()
        for name, progress in seen.items():
            facts, line = (progress.state, progress.node, progress.step), describe(progress)
            last_facts, last_line, at = self._logged.get(name, ((), "", 0.0))
            if facts != last_facts or (line != last_line and now - at >= EVERY):
                self._logged[name] = facts, line, now
                self._line(f"{name}: {line}")

    def _line(self, text: str) -> None:
        line = f"[{datetime.now(UTC):%H:%M:%S}] {text}"
        self._log.write(f"{line}\n")
        if not self._live:
            print(line, flush=True)


def describe(progress: Progress) -> str:
    """Return the progress of a run as one line."""
    state = {"running": progress.step or "starting", "lost": "its node is lost, another one resumes it"}
    parts = [
        state.get(progress.state, progress.state),
        f"on {progress.node}" if progress.node else "",
        f"epoch {progress.epoch} of {progress.epochs}" if progress.epoch else "",
        f"{duration(progress.seconds_left)} left" if progress.seconds_left else "",
        f"best mAP50-95 {progress.best:.3f}" if progress.best is not None else "",
        progress.branch,
        progress.note.partition("\n")[0],
    ]
    return ", ".join(filter(None, parts))


def table(progress: Mapping[str, Progress]) -> Table:
    """Return the progress of all runs as a table."""
    rows = [
        (
            name,
            each.node,
            each.step if each.state == "running" and each.step else each.state,
            f"{each.epoch}/{each.epochs}" if each.epoch else "",
            duration(each.seconds_left) if each.seconds_left else "",
            "" if each.best is None else f"{each.best:.3f}",
        )
        for name, each in progress.items()
    ]
    return make_table(("Experiment", "Node", "State", "Epoch", "Left", "Best mAP50-95"), rows)


# ── the whole sweep ─────────────────────────────────────────────────────────────────────────────────────────────────


def train_all(
    project: Path, experiments: Sequence[Experiment], engine: Engine, *, sandbox: Path | None,
    allow_dirty: bool, secrets: str, folder: Path, watched: bool, once: bool = False,
) -> int:  # fmt: skip
    """Train the experiments that are not published yet, compare all published ones, and return the exit status.

    It is `DONE` if all are published, `NOT_YET` if some are under way or wait (only with `once`), else `FAILED`.
    `project` is the checkout whose commit is trained; with `sandbox`, a sandbox is made in that folder and trained
    instead. `secrets` (a file) and `folder` (where runs work) must be valid paths on every node. Raises `RunError`
    before anything has started.
    """
    from lib.kaggle.notebook import read_sources, source
    from lib.remotes.credentials import load_credentials
    from lib.results.compare import draw_curves, read_runs, show_runs

    credentials = load_credentials(secrets)
    if sandbox is None:
        root, parameters = project, source(project, allow_dirty=allow_dirty)
    else:
        from lib.sandbox.make import make_sandbox

        datasets = {(experiment.module, experiment.dataset): experiment for experiment in experiments}
        for experiment in datasets.values():
            print(f"Making the sandbox in {sandbox}, with {experiment.dataset} …", flush=True)
            made = make_sandbox(project, sandbox, experiment)
        root, parameters = sandbox / "seed", {"repository": str(made.origin), "commit": made.commit}
    refs, commit = Refs(root, credentials), parameters["commit"]
    named = {title_of(experiment): experiment for experiment in experiments}
    before = {name: branch for name, each in named.items() if (branch := find_published(refs, each, commit))}
    parameters["secrets"] = str(Path(secrets).resolve()) if secrets else ""
    sources = read_sources(project)
    jobs = {name: Job(each, sources, parameters, str(folder)) for name, each in named.items() if name not in before}
    print(f"{len(named)} experiments at commit {commit} of {parameters['repository']}, {len(before)} already published")
    with Scoreboard(folder / "sweep.log", before, watched=watched) as board:
        if jobs:
            with engine:
                run_sweep(jobs, refs, engine, board.show, once=once)
    notes = (f"{name}: {each.state}: {each.note}" for name, each in board.progress.items() if each.note)
    print(f"\n{as_text(table(board.progress))}", *notes, sep="\n\n")
    published = [each.branch for each in board.progress.values() if each.branch]
    if published:
        runs, image = read_runs(refs, published), folder / "compare.png"
        draw_curves(runs, image)
        print(f"\n{show_runs(runs)}\n\nCurves: {image}")
    if len(published) == len(named):
        return DONE
    return FAILED if all(each.has_ended for each in board.progress.values()) else NOT_YET
