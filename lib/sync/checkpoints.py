"""Publish the checkpoints of a session: private files on the DVC remote, and a branch that moves with the run's ref.

Guarantees: the branch names complete files at every moment, and only the holder of the run moves it; each commit is a
child of the one before, so that no push is forced. A file is deleted only after a later push of the run, when the
branch is known not to name it. Cannot: be pulled by `dvc pull`; `python -m lib fetch` brings a checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from lib.errors import DvcPushError, RunError
from lib.files import replacing
from lib.sync.lock import RunLock
from lib.sync.publication import Publication, Say
from lib.sync.refs import RefMovedError, RefUpdate
from lib.sync.remotes import CHECKPOINT, Remotes, file_of, named_by
from lib.sync.stores.base import md5_of, mismatch
from lib.sync.tree import build_commit


class CheckpointPublisher:
    """Publishes one checkpoint after another; used by one thread."""

    def __init__(self, remotes: Remotes, lock: RunLock, say: Say) -> None:
        self._remotes, self._lock, self._say = remotes, lock, say
        self._attempts = 0
        self._head: str | None = None
        """The commit of the checkpoint branch, as last read or pushed."""
        self._files: dict[str, str] = {}
        """{name: identity} of every file of ours that may exist."""
        self._named: set[str] = set()
        """The names of those that the branch names, as last read or pushed."""
        repository = lock.take().repository
        self._own = f"{CHECKPOINT}{repository}-{lock.name}-"
        """The beginning of our files' names; a branch that a fork has copied names those of another repository."""
        remotes.roll_back(lock, say)
        remotes.sweep(repository, lock.name)
        self._read_head()

    def _read_head(self) -> None:
        refs, ref = self._remotes.refs, self._lock.checkpoint
        self._head, texts = refs.list_refs(ref).get(ref), {}
        if self._head is not None:
            refs.bring(ref, self._head)
            texts = refs.read_files(ref, "*/checkpoint.json", commit=self._head)
        named = {file["name"]: file["id"] for file in named_by(texts) if file["name"].startswith(self._own)}
        self._files, self._named = self._files | named, set(named)

    def publish(self, run: Publication, record: Mapping[str, object]) -> int:
        """Upload the objects of `run` and move the checkpoint branch; return the uploaded bytes.

        The branch gets the small files of `run.folder`, and `checkpoint.json` with `record` and the uploaded `files`.
        May be called again after any failure. Raises `DvcPushError`, `GitPushError` or `TakenOverError`.
        """
        files = self._upload(run)
        text = json.dumps({**record, "files": files}, indent=2)
        run.find(f"{run.folder}/checkpoint.json").write_text(f"{text}\n", encoding="utf-8")
        while True:
            commit = build_commit(self._remotes.refs, run, {}, parent=self._head)
            try:
                self._lock.push(self._lock.take(), RefUpdate(self._lock.checkpoint, self._head, commit))
                break
            except RefMovedError:  # deleted by hand, or moved by a push of ours whose answer was lost
                self._read_head()
        self._head, self._named = commit, {file["name"] for file in files}
        self._delete_waste()
        return sum(file["size"] for file in files)

    def _upload(self, run: Publication) -> list[dict[str, Any]]:
        store, record = self._remotes.store, self._lock.take()
        self._attempts += 1
        files = []
        for path, identity in zip(run.objects, store.new_identities(len(run.objects)), strict=True):
            name = file_of(record, self._lock.name, self._attempts, PurePosixPath(path).name)
            source = run.find(path)
            digest = md5_of(source)
            self._files[name] = identity  # before the file exists
            copy = store.create(name, source, identity)
            wrong = mismatch(digest, source.stat().st_size, copy) if copy else "is another file's"
            if copy is None or wrong:
                raise DvcPushError(f"{store.name}: the copy {name} {wrong}.", remedy="it is uploaded again.")
            self._files[name] = copy.identity
            files.append({"path": path, "name": name, "id": copy.identity, "size": copy.size, "md5": digest})
        return files

    def _delete_waste(self) -> None:
        """Delete the files that the branch does not name; the run's ref has moved since they were last pushed."""
        for name in sorted(self._files.keys() - self._named):
            try:
                self._remotes.store.delete(name, self._files[name])
            except (RunError, OSError) as error:
                self._say(f"Note: {name} could not be deleted yet: {self._remotes.redact(str(error))}")
                return  # with the next checkpoint, or when the run is recovered
            del self._files[name]

    def end(self) -> None:
        """Delete what failed checkpoints have left; the last published checkpoint stays."""
        if self._files.keys() - self._named:
            self._lock.push(self._lock.take())  # a push in doubt is rejected from here on
            self._read_head()
            self._delete_waste()


def fetch_file(remotes: Remotes, file: Mapping[str, Any], target: Path) -> None:
    """Download a file of a checkpoint, given by its entry in `checkpoint.json`: all of it, or nothing.

    Raises `FileNotFoundError` if it is gone since the branch has moved, and `DvcPushError` if it has other content.
    """
    with replacing(target) as part:
        remotes.store.read(file["name"], file["id"], part)
        if md5_of(part) != file["md5"]:
            raise DvcPushError(f"{remotes.store.name}: {file['name']} has other content.", remedy="try again.")
