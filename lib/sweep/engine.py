"""Run a sweep on a Ray cluster; the only module that imports Ray.

Guarantees: each run is a task that Ray schedules on a node with enough free GPUs. If a node dies, its run is submitted
again and resumes from its checkpoint branch on another node, unless a person has stopped it meanwhile. A run that fails
by itself is not repeated and stops no other run. No credentials pass through Ray.

Cannot: outlive the driver; its tasks end with it. The same sweep, started again, resumes.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from lib.errors import ClusterError, GitPushError
from lib.results.published import find_published, find_stops
from lib.sweep.worker import Execution, Job, Progress
from lib.sync import Refs

LOOK = 1.0  # seconds between two polls of a run
PATIENCE = 120.0  # seconds that runs have to end after a request to stop
ANSWER = 10.0  # seconds; timeout of the connection to a cluster
ID = 4  # characters of a node's id at the end of its name
LIB = Path(__file__).resolve().parents[1]

# Ray reads these when it is imported. Under `uv run` it would otherwise create a new environment on each node.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
try:
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    raise ClusterError(
        f"a sweep needs Ray, which is not installed ({error}).",
        remedy="`uv sync --group cluster`, on every machine.",
    ) from None


class Board:
    """A Ray actor on the driver's node that collects the progress of all runs and passes them the request to stop."""

    def __init__(self, names: Sequence[str]) -> None:
        self._progress = {name: Progress() for name in names}
        self._stop = False

    def report(self, name: str, progress: Progress) -> bool:
        """Store the progress of a run; return whether the run must stop."""
        self._progress[name] = progress
        return self._stop

    def read(self) -> dict[str, Progress]:
        """Return the last progress of each run."""
        return self._progress

    def stop(self) -> None:
        """Request that every run stops, including runs that have not started yet."""
        self._stop = True


def _run(name: str, job: Job, board: Any) -> Progress:  # noqa: ANN401  an actor handle
    """Execute a run as a Ray task, report its progress to the board and return its final progress."""
    node = f"{socket.gethostname()}-{ray.get_runtime_context().get_node_id()[:ID]}"
    # `ray.get` in a task's main thread releases the task's CPU: Ray would start another task on it
    thread = ThreadPoolExecutor(1)

    def report(progress: Progress) -> bool:
        return thread.submit(lambda: bool(ray.get(board.report.remote(name, progress)))).result()

    if report(Progress("running", node)):
        return Progress("stopped", note="it was stopped before it started.")
    with thread, closing(Execution(job)) as execution:
        while True:
            progress = replace(execution.look(), node=node)
            if progress.has_ended:
                return progress
            if report(progress):
                execution.stop()
            time.sleep(LOOK)


@dataclass
class _Submitted:
    """A run of the sweep: its job, the stops from before it was submitted, and what became of it."""

    job: Job
    stops: tuple[str, ...]
    task: Any = None
    losses: int = 0
    """How often it has lost its node."""
    ended: Progress | None = None


class Cluster:
    """A Ray cluster and its runs, as a context manager: the cluster at `address`, or this machine if it is empty.

    Each run may lose its node `retries` times. With `resume`, those that a person has stopped are run, too.
    """

    pause = LOOK

    def __init__(
        self, address: str = "", *, gpus: float = 1, cpus: float = 1, retries: int = 3, resume: bool = False
    ) -> None:
        self._address, self._gpus, self._cpus, self._retries = address, gpus, cpus, retries
        self._resume = resume
        self._board: Any = None
        self._task: Any = None
        self._runs: dict[str, _Submitted] = {}

    def __enter__(self) -> Self:
        # without an address Ray would join any existing cluster that it detects
        where = {"address": self._address} if self._address else {"address": "local", "include_dashboard": False}
        try:
            host, _, port = self._address.rpartition(":")
            if port.isdigit():  # fail at once if nothing listens there: Ray itself would retry for minutes
                socket.create_connection((host, int(port)), ANSWER).close()
            ray.init(**where, log_to_driver=False, logging_level=logging.ERROR, runtime_env={"py_modules": [str(LIB)]})
        except (OSError, RuntimeError, ValueError) as error:
            raise ClusterError(
                f"no Ray cluster answers at --address {self._address!r}: {error}",
                remedy="start one with `ray start --head` (and `ray start --address=HEAD:6379` on each other machine) "
                "with the same Python and Ray, or leave --address out to use this machine.",
            ) from None
        self._require_room()
        return self

    def __exit__(self, *_: object) -> None:
        ray.shutdown()

    def _require_room(self) -> None:
        """Raise `ClusterError` if no node is large enough for a run: its task would wait forever."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        wanted = {"GPU": self._gpus, "CPU": self._cpus}
        if not any(all(node.get(kind, 0) >= count for kind, count in wanted.items()) for node in nodes):
            most = "; ".join(f"{node.get('GPU', 0):g} GPUs, {node.get('CPU', 0):g} CPUs" for node in nodes)
            raise ClusterError(
                f"no node has room for a run of {self._gpus:g} GPUs and {self._cpus:g} CPUs; the nodes have: {most}.",
                remedy="lower --gpus-per-run (0 trains on the CPU) or --cpus-per-run.",
            )

    def start(self, jobs: Mapping[str, Job], refs: Refs) -> None:
        """Submit every run to the cluster, except those that a person has stopped."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._board = ray.remote(num_cpus=0)(Board).options(scheduling_strategy=here).remote(list(jobs))
        self._refs = refs
        self._task = ray.remote(
            num_cpus=self._cpus,
            num_gpus=self._gpus,
            max_retries=0,  # Ray's own retry would go on with a run that a person has stopped
            scheduling_strategy="SPREAD",
        )(_run)
        for name, job in jobs.items():
            run = self._runs[name] = _Submitted(job, find_stops(refs, job.experiment))
            if run.stops and not self._resume:
                run.ended = Progress("stopped", note=f"{run.stops[0]}: add --resume")
            else:
                self._submit(name, run)

    def _submit(self, name: str, run: _Submitted) -> None:
        run.task = self._task.remote(name, run.job, self._board)

    def look(self) -> dict[str, Progress]:
        """Return the progress of every run, by name; submit those again whose node was lost.

        Raises `ClusterError` if the cluster is lost.
        """
        reported: Mapping[str, Progress] = self._ask(self._board.read)
        alive = {node["NodeID"][:ID] for node in ray.nodes() if node["Alive"]}
        found = {}
        for name, run in self._runs.items():
            found[name] = last = reported[name]
            if not run.ended and ray.wait([run.task], timeout=0)[0]:
                run.ended = self._end(name, run, last)
            if run.ended:
                found[name] = run.ended
            elif last.node and last.node[-ID:] not in alive:
                found[name] = replace(last, state="lost")
        return found

    def _end(self, name: str, run: _Submitted, last: Progress) -> Progress | None:
        """Return what a run has come to whose task has ended; None if it goes on, since its node was lost."""
        try:
            ended: Progress = ray.get(run.task)
        except RayTaskError as error:
            return replace(last, state="failed", note=str(error.cause))
        except RayError as error:
            return self._after_loss(name, run, last, f"its node was lost ({type(error).__name__})")
        return ended

    def _after_loss(self, name: str, run: _Submitted, last: Progress, what: str) -> Progress | None:
        """Submit a run again, if that is due; else return what it has come to."""
        try:
            branch = find_published(self._refs, run.job.experiment, str(run.job.parameters["commit"]))
            stops = [each for each in find_stops(self._refs, run.job.experiment) if each not in run.stops]
        except GitPushError:
            return None  # the remote is asked again at the next look
        if branch:
            return replace(last, state="published", branch=branch)
        if stops:
            return replace(last, state="stopped", note=f"{what}, and {stops[0]}: add --resume")
        if run.losses == self._retries:
            note = f"{what}, as {run.losses} times before; start the same sweep again to resume it."
            return replace(last, state="failed", note=note)
        run.losses += 1
        self._submit(name, run)
        return None

    def stop(self) -> float:
        """Request that every run stops; return the seconds that they have for it."""
        self._ask(self._board.stop)
        return PATIENCE

    def _ask(self, method: Any) -> Any:  # noqa: ANN401  a method of the actor handle
        try:
            return ray.get(method.remote())
        except RayError as error:
            raise ClusterError(
                f"the Ray cluster is lost: {type(error).__name__}: {error}",
                state="its runs end with it; what they published stays, and so do their checkpoints.",
                remedy="start the cluster and the same sweep again: it resumes.",
            ) from None
