"""Train the runs of a sweep on Kaggle: push each one, and push it again when its session ended before the training.

Guarantees: no state is kept here. Each look reads the claims, Kaggle and the branches, in this order, and does what
`plan.py` decides; the same sweep may be ended, started on another machine, or run twice at once. No credential of this
machine goes to Kaggle: the kernel attaches the private dataset with secrets.json. Cannot: stop a session; it goes on
when the sweep ends.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from lib.errors import BranchError, GitPushError, KaggleError, PushRefusedError, RenderError
from lib.experiment.modules import find_module
from lib.experiment.schema import Experiment
from lib.kaggle.client import question
from lib.kaggle.kernel import (
    gpu_quota,
    kernel_metadata,
    kernel_name,
    push_kernel,
    pushing_user,
    require_private,
    secrets_state,
)
from lib.kaggle.notebook import SOURCES, bake, read_notebook, write_rendered
from lib.process import CommandFailed, CommandTimedOut
from lib.results.estimate import LONGEST_SESSION, estimate
from lib.results.published import HEADS, completed_epochs, own_records
from lib.sweep.claims import PUSHES, move_claim, read_claims
from lib.sweep.plan import GRACE, Claim, Decision, Room, Seen, plan
from lib.sweep.worker import Job, Progress
from lib.sync import CHECKPOINTS, RUNS, STOPS, Refs, short_name

ACCELERATOR = "t4x2"
Claims = Mapping[str, tuple[str, Claim]]


class Kaggle:
    """Kaggle's GPU sessions as an engine of a sweep, for the checkout `project`; at most `slots` are used at a time.

    `user` owns the kernels (default: the kaggle client's user), and `dataset` is the secrets dataset. With `resume`,
    runs that were stopped, or whose last sessions completed no epoch, are pushed once more.
    """

    pause = 60.0  # seconds between two looks

    def __init__(
        self, project: Path, *, user: str = "", dataset: str = "", slots: int = 2, resume: bool = False
    ) -> None:
        self._project, self._slots, self._user, self._dataset = project, slots, user, dataset
        self._jobs: Mapping[str, Job] = {}
        self._resumed: set[str] | None = None if resume else set()
        """The runs that are still to be pushed once more; None: not known before the first look."""
        self._last: dict[str, Progress] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start(self, jobs: Mapping[str, Job], refs: Refs) -> None:
        """Take the jobs. Raises `RenderError` if Kaggle cannot clone their repository, `KaggleError` without a key."""
        self._jobs, self._refs = jobs, refs
        repositories = {str(job.parameters["repository"]) for job in jobs.values()}
        for repository in repositories:
            self._user = pushing_user(self._user, repository)
        self._dataset = self._dataset or f"{self._user}/kaggle-training-secrets"

    def stop(self) -> float:
        """Print that the sessions go on, and return the seconds to wait for their end: none."""
        print("\nThe sessions on Kaggle go on. Start the same sweep again to follow them and to resume their runs; "
              "`python -m lib stop EXPERIMENT` stops one.")  # fmt: skip
        return 0.0

    def look(self) -> dict[str, Progress]:
        """Read what has become of every run, push what is due, and return their progress, by name.

        Raises `KaggleError` for the user's key, a public kernel or an unusable secrets dataset, and `GitPushError` if
        the Git remote does not answer at the first look; later it is asked again at the next one.
        """
        try:
            claims = read_claims(self._refs)
            seen = self._read(claims)
            self._last = {name: self._act(name, seen[name], each) for name, each in self._decide(seen).items()}
        except GitPushError as error:
            if not self._last:
                raise
            print(f"Warning: {error.what.splitlines()[0]} It is asked again.", flush=True)
        return self._last

    # ── reading ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _read(self, claims: Claims) -> dict[str, Seen]:
        """Read every run from Kaggle, and then from the Git remote."""
        kernels = {name: self._ask_kernel(job.experiment) for name, job in self._jobs.items()}
        wanted = [f"{HEADS}kaggle-train-{job.experiment.key}-*" for job in self._jobs.values()]
        # with a *, since an exact name that is not there would be an error
        runs = [short_name(job.experiment.key) for job in self._jobs.values()]
        wanted += [f"{place}{run}*" for run in runs for place in (CHECKPOINTS, RUNS, STOPS)]
        texts = self._refs.read_files_of_all(tuple(wanted), "artifacts/*/run.json", "artifacts/*/checkpoint.json")
        seen = {}
        for name, job in self._jobs.items():
            run, values = short_name(job.experiment.key), job.experiment.model_dump(mode="json")
            commit, (version, sessions) = job.parameters["commit"], kernels[name]
            claim_commit, claim = claims.get(run, ("", None))
            published = list(own_records(texts, job.experiment))
            own = [
                record for record in published
                if (record.commit == commit and record.experiment == values)
                or (claim and claim.is_of(values) and record.commit == claim.commit and claim.is_of(record.experiment))
            ]  # fmt: skip
            seen[name] = Seen(
                commit, values, claim, claim_commit or None,
                branch=published[0].branch if published else "",
                state=published[0].state if published else "",
                finished=next((record.branch for record in own if record.state == "finished"), ""),
                epoch=completed_epochs(texts.get(f"{CHECKPOINTS}{run}", {}), job.experiment.key),
                is_asked_to_stop=f"{STOPS}{run}" in texts,
                is_held=f"{RUNS}{run}" in texts,
                version=version,
                sessions=sessions,
            )  # fmt: skip
        return seen

    def _ask_kernel(self, experiment: Experiment) -> tuple[int | None, dict[int, str]]:
        """Return the newest version of an experiment's kernel and {version: state}; None if Kaggle does not answer."""
        kernel = kernel_name(experiment.key, self._user)
        try:
            found = question("kernel", kernel)
        except (CommandFailed, CommandTimedOut):
            return None, {}
        if found is None:
            return 0, {}
        require_private(kernel, found)
        return found["newest"], {int(version): state for version, (state, _) in found["states"].items()}

    # ── deciding ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _decide(self, seen: Mapping[str, Seen]) -> dict[str, Decision]:
        now = datetime.now(UTC)
        if self._resumed is None:
            first = plan(seen, Room(self._slots), now)
            self._resumed = {name for name, each in first.items() if each.kind in ("stopped", "failed")}
        decisions = plan(seen, Room(self._slots), now, self._resumed)
        due = [name for name, each in decisions.items() if each.kind == "push"]
        if due:
            room = Room(self._slots, gpu_quota(), self._secrets_state())
            if room.quota and room.quota.left < LONGEST_SESSION:
                seen = {**seen, **{name: replace(seen[name], needed=self._needed(name)) for name in due}}
            decisions = plan(seen, room, now, self._resumed)
        if any(each.kind in ("stopped", "failed") for each in decisions.values()):
            # another sweep may have pushed it since its claim was read
            commits = self._refs.list_refs(f"{PUSHES}*")
            for name, decision in decisions.items():
                ref = f"{PUSHES}{short_name(self._jobs[name].experiment.key)}"
                if decision.kind in ("stopped", "failed") and commits.get(ref) != seen[name].claim_commit:
                    decisions[name] = Decision("waiting", "another sweep works on it")
        return decisions

    def _secrets_state(self) -> str:
        """Return why the secrets dataset cannot be attached yet; "" if it can. Raises `KaggleError` if it never can."""
        try:
            return secrets_state(self._dataset, question("dataset", self._dataset))
        except (CommandFailed, CommandTimedOut):
            return "Kaggle does not report its state"

    def _needed(self, name: str) -> float:
        """Return the GPU hours that a session of a run needs to get beyond its checkpoint; 0 if not known."""
        found = estimate(self._project, self._refs, self._jobs[name].experiment, ACCELERATOR)
        return found.needed if found else 0.0

    # ── acting ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _act(self, name: str, seen: Seen, decision: Decision) -> Progress:
        """Push a run if that is due, and return its progress."""
        experiment = self._jobs[name].experiment
        kernel = kernel_name(experiment.key, self._user)
        node = f"{kernel}/{max(seen.active)}" if seen.active else ""
        known = Progress(node=node, epoch=seen.epoch, epochs=experiment.training.epochs, note=decision.note)
        match decision.kind:
            case "finished":
                return Progress("published", branch=decision.note)
            case "stopped":
                return replace(known, state="stopped", branch=seen.branch if seen.state == "stopped" else "")
            case "failed":
                note = (
                    f"{decision.note}: read its log at https://www.kaggle.com/code/{kernel}; --resume pushes it again."
                )
                return replace(known, state="failed", note=note)
            case "running":
                return replace(known, state="running", step=decision.note, note="")
            case "push":
                assert decision.claim is not None
                return self._push(name, kernel, seen, decision.claim, known)
            case _:
                return replace(known, state="waiting")

    def _push(self, name: str, kernel: str, seen: Seen, claim: Claim, known: Progress) -> Progress:
        """Claim a run, push it, and note the pushed version in the claim; return its progress."""
        began, run = time.monotonic(), short_name(self._jobs[name].experiment.key)
        try:
            folder = self._render(name, run, claim)
        except (RenderError, BranchError) as error:
            return replace(known, state="failed", note=error.what)
        made = move_claim(self._refs, run, seen.claim_commit, claim)
        if made is None or time.monotonic() - began > GRACE / 3:  # else the push might end after `GRACE`
            return replace(known, state="waiting", note="another sweep works on it")
        try:
            pushed, _ = push_kernel(folder, kernel, claim.version)
        except PushRefusedError as error:
            move_claim(self._refs, run, made, seen.claim)
            return replace(known, state="waiting" if error.passes else "failed", note=error.what)
        except KaggleError as error:  # it may have been pushed: its kernel shows it at the next look
            return replace(known, state="waiting", note=error.what)
        assert self._resumed is not None
        self._resumed.discard(name)
        version = int(pushed.rpartition("/")[2])
        move_claim(self._refs, run, made, claim.model_copy(update={"pushed": version}))
        return replace(known, state="running", node=pushed, step="pushed")

    def _render(self, name: str, run: str, claim: Claim) -> Path:
        """Render a run as its claim names it and return the folder to push. Raises `RenderError`."""
        job = self._jobs[name]
        sources = job.sources
        if claim.commit != job.parameters["commit"]:  # the branch has moved on
            sources = self._refs.read_files(f"{PUSHES}{run}", *SOURCES, commit=claim.commit)
            if SOURCES[0] not in sources:
                raise RenderError(f"{SOURCES[0]} of commit {claim.commit[:12]} is missing.")
        about, folder = find_module(job.experiment.module), Path(job.folder) / "kaggle" / run
        values = {
            "module": about.name,
            "experiment": claim.experiment,
            "repository": job.parameters["repository"],
            "commit": claim.commit,
            "accelerator": ACCELERATOR,
        }
        kernel = kernel_metadata(about, job.experiment.key, ACCELERATOR, self._user, self._dataset)
        write_rendered(folder, about, bake(read_notebook(sources), values), kernel)
        return folder
