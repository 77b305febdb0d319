"""Stop a run from any machine: ask its session by a ref on the Git remote, or delete its kernel on Kaggle.

Guarantees: a run that was stopped is not begun again by a push or a sweep, unless a person wants that: it is published
as stopped, or its stop stays on the Git remote. Cannot: end a session at once that is not on Kaggle, or know whether a
session that was asked is still alive.
"""

from __future__ import annotations

import contextlib
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lib.errors import GitPushError, StopError
from lib.experiment.load import load_experiment
from lib.experiment.modules import MODULES
from lib.experiment.schema import Experiment
from lib.kaggle.client import ask, message, need
from lib.kaggle.kernel import ACTIVE, kernel_name
from lib.process import MINUTE, CommandFailed, CommandTimedOut
from lib.progress import duration, say
from lib.remotes.clone import clone_with
from lib.remotes.credentials import Credentials
from lib.sync import CHECKPOINTS, RUNS, STOPS, Refs, RunLock, Stop, recover, short_name
from lib.sync import discard as discard_run
from lib.sync.lock import short
from lib.sync.refs import ANY, RefUpdate
from lib.train.checkpoints import Record

AROUND = re.compile(r"^(origin/|refs/heads/)?(refs/runs/|refs/stops/|kaggle-checkpoint-|kaggle-train-)|-\d{8}-\d{6}$")
"""What a ref's name has around the key of its experiment."""


def key_of(run: str) -> str:
    """Return the key, {module}-{slug}, of the experiment that a YAML file, module/name or a ref names.

    Raises `ExperimentError` for a file that cannot be read.
    """
    if run.endswith((".yaml", ".yml")):
        return load_experiment(Path(run)).key
    module, _, name = run.partition("/")
    if module in MODULES and name:
        values: dict[str, Any] = {"module": module, "name": name}
        return Experiment.model_construct(**values).key
    return AROUND.sub("", run)


def ask_to_stop(refs: Refs, key: str, *, discard: bool) -> None:
    """Ask the session of a run to stop after the epoch under way.

    Raises `StopError` if no session of this repository holds the run, and `GitPushError` if the Git remote refuses.
    """
    name = short_name(key)
    seen, identity = refs.read_runs(name).get(name), refs.list_refs(refs.identity_ref).get(refs.identity_ref)
    if seen is None:
        raise StopError(
            f"no session holds the run {key}.",
            remedy="`python -m lib status` shows those under way. A session takes its run at its step 4: until then, "
            "and for one that is still queued on Kaggle, use --now.",
        )
    if seen.record is None or identity is None or seen.record.repository != short(identity):
        raise StopError(
            f"{RUNS}{name} was written by another version of this project, or copied from another repository.",
            remedy="stop it from a clone of that repository, with that version.",
        )
    commit = _push_stop(refs, key, discard=discard)
    if f"{RUNS}{name}" not in refs.list_refs(f"{RUNS}{name}"):  # it has ended meanwhile, perhaps without having seen it
        with contextlib.suppress(GitPushError):  # another session has taken the run, and deleted the stop
            refs.push(RefUpdate(f"{STOPS}{name}", commit, None))
        raise StopError(f"the run {key} has just ended by itself.", remedy="`python -m lib status` shows how.")


def _push_stop(refs: Refs, key: str, *, discard: bool) -> str:
    """Create or replace the stop of a run, and return its commit."""
    ref, commit = f"{STOPS}{short_name(key)}", refs.write_stop(Stop(action="discard" if discard else "publish"))
    refs.push_patiently(
        lambda: [RefUpdate(ref, ANY, commit)],
        lambda: refs.list_refs(ref).get(ref) == commit,
    )
    return commit


# ── at once, on Kaggle ──────────────────────────────────────────────────────────────────────────────────────────────


def active_kernel(key: str, owner: str) -> str:
    """Return the kernel of an experiment. Raises `StopError` unless a version of it is queued or running."""
    kernel = kernel_name(key, owner)
    found = need(f"the state of {kernel}", "kernel", kernel, state=StopError.state)
    if found is None or not any(state in ACTIVE for state, _ in found["states"].values()):
        raise StopError(
            f"no version of {kernel} is queued or running on Kaggle.",
            remedy="name the kernel's owner with --kaggle-user. Without --now, a run stops after the epoch under way, "
            "on any machine.",
        )
    return kernel


def describe_loss(refs: Refs, key: str, *, discard: bool) -> str:
    """Return what a run loses if it is stopped at once, in a sentence."""
    ref = f"{CHECKPOINTS}{short_name(key)}"
    # an exact name that is not there would be an error
    texts = refs.read_files_of_all(f"{ref}*", "artifacts/*/checkpoint.json").get(ref, {})
    if not texts:
        return "It has no checkpoint: all that it has trained is lost."
    then = "is deleted, too" if discard else "stays; what it has trained since is lost"
    for text in texts.values():
        with contextlib.suppress(ValidationError):
            record = Record.model_validate_json(text)
            age = duration((datetime.now(UTC) - record.saved).total_seconds())
            return f"Its newest checkpoint, of epoch {record.epoch} and {age} old, {then}."
    return f"Its newest checkpoint, which this version cannot read, {then}."


def stop_now(root: Path, credentials: Credentials, key: str, kernel: str, *, discard: bool) -> None:
    """Delete a run's kernel, which ends its sessions; then roll back what its session left, after its lease.

    The stop is created first and stays, so that nothing begins the run again. Raises `StopError` if Kaggle does not
    delete the kernel, or if the run's session lives nevertheless; it stops after the epoch under way then.
    """
    refs, asked = Refs(root, credentials), f"{key} was asked to stop after the epoch under way."
    run = refs.read_runs(short_name(key)).get(short_name(key))
    _push_stop(refs, key, discard=discard)
    try:
        answer = ask("kernels", "delete", kernel, "--yes", timeout=5 * MINUTE)
        why = f"{answer.output} {answer.errors}"
    except (CommandFailed, CommandTimedOut) as failed:
        why = message(failed)
    if need(f"whether {kernel} is deleted", "kernel", kernel, state=asked) is not None:  # the client exits with 0
        raise StopError(
            f"Kaggle did not delete {kernel}: {' '.join(why.split())}",
            state=asked,
            remedy=f"run it again, or delete it at https://www.kaggle.com/code/{kernel}.",
        )
    say(f"{kernel} is deleted. Recovering its run, which waits for its lease …")
    with clone_with(root, credentials) as clone:
        if recover(clone, credentials, run=short_name(key), say=say):
            raise StopError(
                f"{kernel} is deleted, and yet a session of {key} is alive, or cannot be recovered here.",
                state=asked,
                remedy="if it is not on Kaggle, end it on its machine; `python -m lib recover` then cleans up.",
            )
        if discard:
            full_name = run.record.name if run and run.record else key
            discard_run(clone, credentials, RunLock(Refs(clone, credentials), key, full_name=full_name, say=say), say)
