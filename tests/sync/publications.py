"""What the tests of the transaction share: a publication of the run, hooks of the Git remote, and checks."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import conftest
import drive_emulator
from conftest import RUN, WEIGHTS, Stores, run_git

from lib.remotes.credentials import Credentials
from lib.sync import (
    CheckpointPublisher,
    Publication,
    Published,
    Refs,
    RunLock,
    open_remotes,
    sync_outputs,
)

drive_client, assert_no_secret = drive_emulator.drive_client, conftest.assert_no_secret

BRANCH = "kaggle-train-detection-exp001-20250102-030405"
OTHER = "kaggle-train-detection-exp001-20250102-040506"
CHECKPOINT = "kaggle-checkpoint-detection-exp001"
STAMP = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)


def publication(
    clone: Path, branch: str = BRANCH, *, hold: RunLock | None = None, keeps_checkpoint: bool = False
) -> Publication:
    """Return the publication of a clone's run."""
    return Publication(
        clone, branch, "Training of exp001\n", RUN, WEIGHTS, STAMP, hold=hold, keeps_checkpoint=keeps_checkpoint
    )


def publish(
    clone: Path,
    branch: str = BRANCH,
    *,
    hold: RunLock | None = None,
    keeps_checkpoint: bool = False,
    credentials: Credentials | None = None,
    say: Callable[[str], object] = str,
) -> Published:
    """Publish a clone's run."""
    return sync_outputs(publication(clone, branch, hold=hold, keeps_checkpoint=keeps_checkpoint), credentials, say=say)


def lock_of(clone: Path, name: str = "detection-exp001", *, lease: float = 600.0) -> RunLock:
    """Return the lock of a run, not taken yet."""
    return RunLock(Refs(clone, Credentials()), name, lease=lease, say=str)


def take_over(clone: Path, name: str = "detection-exp001") -> RunLock:
    """Take the run over from a session that may be alive, as if it had not answered; return the lock."""
    refs = Refs(clone, Credentials())
    run = refs.read_runs()[name]
    assert run.record is not None
    lock = RunLock(refs, name, full_name=run.record.name, lease=run.record.lease, say=str)
    lock._asked = -math.inf  # one lease has passed since it was asked
    assert lock.seize(run, refs.list_refs(refs.identity_ref)[refs.identity_ref], is_asked=True)
    return lock


@contextmanager
def checkpoints(clone: Path, lock: RunLock) -> Iterator[CheckpointPublisher]:
    """Yield what publishes the checkpoints of a session that holds the run."""
    with open_remotes(clone, Credentials()) as remotes:
        yield CheckpointPublisher(remotes, lock, str)


def publish_checkpoint(publisher: CheckpointPublisher, clone: Path, epoch: int = 1) -> int:
    """Publish the clone's run as a checkpoint."""
    return publisher.publish(publication(clone, CHECKPOINT), {"epoch": epoch})


def refuse(stores: Stores, pattern: str, reason: str = "no new branches today") -> None:
    """Make the Git remote refuse refs that match the shell pattern, with this reason."""
    _write_hook(stores, f'{pattern}) echo "{reason}" >&2; exit 1;;')


def accept_only(stores: Stores, pattern: str) -> None:
    """Make the Git remote refuse refs that do not match the shell pattern."""
    _write_hook(stores, f"{pattern}) ;; *) exit 1;;")


def _write_hook(stores: Stores, cases: str) -> None:
    stores.write_hook("pre-receive", f'while read old new ref; do case "$ref" in {cases} esac; done')


# ── objects ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def md5_of(content: bytes) -> str:
    """Return the name of an object with this content."""
    return hashlib.md5(content).hexdigest()


def object_name(md5: str) -> str:
    """Return the path of an object below the DVC remote."""
    return f"files/md5/{md5[:2]}/{md5[2:]}"


def path_of(file: Path) -> str:
    """Return the path of a file's object below the DVC remote."""
    return object_name(md5_of(file.read_bytes()))


def objects_of(clone: Path) -> dict[str, bytes]:
    """Return the objects of a clone's run: their paths below the DVC remote, and their content."""
    return {path_of(clone / name): content for name, content in models_of(clone).items()}


def models_of(clone: Path) -> dict[str, bytes]:
    """Return the trained models of a clone."""
    return {name: (clone / name).read_bytes() for name in WEIGHTS}


def named_by(repository: Path, commit: str) -> dict[str, tuple[str, str]]:
    """Return the files of the DVC remote that a commit names: their MD5 and, for a checkpoint, their identity."""
    found = {}
    for name in run_git("ls-tree", "-r", "--name-only", commit, cwd=repository).splitlines():
        if name.endswith(".dvc"):
            md5 = run_git("show", f"{commit}:{name}", cwd=repository).split("md5: ")[1].split()[0]
            found[object_name(md5)] = (md5, "")
        elif name.endswith("/checkpoint.json"):
            files = json.loads(run_git("show", f"{commit}:{name}", cwd=repository))["files"]
            found |= {file["name"]: (file["md5"], file["id"]) for file in files}
    return found


# ── checks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def identities(stores: Stores) -> dict[Path, tuple[int, int]]:
    """Return every file of the DVC remote with its identity, which changes when the file is written again."""
    files = [stores.storage / name for name in stores.objects()]
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in files}


@contextmanager
def nothing_changes(stores: Stores, stored: Callable[[], object] | None = None) -> Iterator[None]:
    """Check that the block changes neither remote, nor the models, nor the clone's status.

    `stored` returns the content of the DVC remote, if that is not the folder of `stores`.
    """

    def state() -> dict[str, object]:
        clone = stores.clone
        return {
            "refs": stores.refs(),
            "objects": stored() if stored else identities(stores),
            "models": models_of(clone),
            "files": sorted(path for path in (clone / "artifacts").rglob("*") if path.is_file()),
            "status": run_git("status", "--porcelain", "--untracked-files=all", cwd=clone),
            "index": run_git("ls-files", "--stage", cwd=clone),
            "local refs": run_git("for-each-ref", cwd=clone),
            "head": run_git("rev-parse", "--symbolic-full-name", "HEAD", cwd=clone),
        }

    before = state()
    yield
    assert state() == before
