"""Fetch a published model to the user's machine.

Guarantees: a fetched folder holds everything that the run published in its artifacts' folder, each weights file with
the hash in its `.dvc` file, or the folder does not exist; each file of a checkpoint is whole or absent. The local
checkout, its index, HEAD, branches and files stay unchanged, and the dataset is not downloaded. An existing folder of a
run is verified and reused, without the network.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import md5
from pathlib import Path

from lib.data.pull import pull_objects
from lib.errors import BranchError, RemoteError, SyncError
from lib.progress import file_size
from lib.remotes.clone import clone_with
from lib.remotes.credentials import Credentials
from lib.results.published import HEADS, PublishedRun, find_own, read_published
from lib.results.record import RunRecord, parse
from lib.sync import Refs
from lib.train.checkpoints import Record, fetch_weights_of


@dataclass(frozen=True)
class Model:
    """The published files of one run, in a local folder."""

    folder: Path
    record: RunRecord

    @property
    def best(self) -> Path:
        """Return the path of the best weights."""
        return self.folder / "train/weights/best.pt"

    @property
    def weights(self) -> list[Path]:
        """Return the paths of all files stored on the DVC remote: best and last weights, exported models."""
        return [pointer.with_suffix("") for pointer in sorted(self.folder.rglob("*.dvc"))]

    def describe(self) -> str:
        """Return a few lines for the user."""
        sizes = [f"{path.relative_to(self.folder)} ({file_size(path.stat().st_size)})" for path in self.weights]
        return f"Folder:  {self.folder}\nCard:    {self.folder / 'README.md'}\nWeights: {', '.join(sizes)}"


def fetch_model(root: Path, branch: str, credentials: Credentials, folder: Path | None = None) -> Model:
    """Fetch everything that the run of `branch` published into `folder`, and return it.

    Without a `folder`, it is `build/models/BRANCH` of the checkout. Raises `BranchError` if the branch does not belong
    to a run, its weights cannot be fetched, or the folder holds something else; `GitPushError` if the Git remote does
    not answer.
    """
    name = branch.removeprefix("origin/")
    folder = folder or root / "build" / "models" / name
    found = _find_fetched(folder, name)
    if found is not None:
        return found
    refs = Refs(root, credentials)
    run = read_published(refs, name)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}.", suffix=".part", dir=folder.parent) as place:
            part = Path(place).resolve() / "run"
            part.mkdir()
            refs.write_files(run.ref, run.folder, part)
            _pull_weights(root, part, run, credentials)
            part.replace(folder)
    except OSError as error:
        raise BranchError(
            f"{folder} cannot be written: {error}.",
            remedy="free some space, or name another folder with --output.",
        ) from error
    return Model(folder, run.record)


def fetch_checkpoint_files(root: Path, branch: str, credentials: Credentials, folder: Path | None = None) -> list[Path]:
    """Fetch the weights of the checkpoint `branch` into `folder`, and return their paths.

    Without a `folder`, it is `build/models/BRANCH` of the checkout. Raises `BranchError` if there is no such checkpoint
    or its weights cannot be fetched.
    """
    refs, ref = Refs(root, credentials), f"{HEADS}{branch}"
    if ref not in refs.list_refs(ref):
        raise BranchError(f"{refs.url} has no branch {branch!r}.", remedy="`python -m lib status` lists checkpoints.")
    _, record = find_own(branch, refs.read_files(ref, "artifacts/*/checkpoint.json"), Record)
    try:
        with clone_with(root, credentials) as clone:
            return fetch_weights_of(clone, record, folder or root / "build" / "models" / branch, credentials)
    except (SyncError, OSError) as error:
        what = error.what if isinstance(error, SyncError) else str(error)
        raise BranchError(
            f"the weights of {branch} cannot be downloaded: {what}", remedy="run the same command again."
        ) from error


def _find_fetched(folder: Path, branch: str) -> Model | None:
    """Return the model that an earlier call left in `folder`; None if the folder is absent or empty."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        record = parse(RunRecord, (folder / "run.json").read_bytes())
        wrong = "" if record.branch == branch else f"it holds {record.branch}"
    except (OSError, ValueError):
        wrong = "it is not a fetched model"
    wrong = wrong or "; ".join(_damages(folder))
    if wrong:
        raise BranchError(
            f"{folder} cannot be used for {branch}: {wrong}.",
            state="the folder is unchanged.",
            remedy="remove that folder, or name another with --output, and run the same command again.",
        )
    return Model(folder, record)


def _pull_weights(root: Path, part: Path, run: PublishedRun, credentials: Credentials) -> None:
    pointers = {f"run/{path.relative_to(part)}": path.read_text(encoding="utf-8") for path in part.rglob("*.dvc")}
    remedy = ""
    try:
        with clone_with(root, credentials) as clone:
            pull_objects(clone, part.parent, pointers, credentials, f"Pulling {run.record.branch}")
        wrong = "; ".join(_damages(part))
    except RemoteError as error:
        wrong, remedy = error.what, error.remedy
    if wrong:
        raise BranchError(
            f"`dvc pull` of {run.record.branch} failed: {wrong}.",
            remedy=remedy
            or "ensure the DVC remote is accessible (for Google Drive: --secrets secrets.json); `python -m lib "
            "check` reports whether it has the objects that the branch names.",
        )


def _damages(folder: Path) -> Iterator[str]:
    """Yield one text for each weights file that is missing or does not match its `.dvc` file."""
    for pointer in sorted(folder.rglob("*.dvc")):
        file = pointer.with_suffix("")
        if not file.is_file():
            yield f"{file.relative_to(folder)} is missing"
        elif f"md5: {md5(file.read_bytes(), usedforsecurity=False).hexdigest()}" not in pointer.read_text(
            encoding="utf-8"
        ):
            yield f"{file.relative_to(folder)} is damaged"
