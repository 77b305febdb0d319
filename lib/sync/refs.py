"""Read the refs of runs, and update several refs of the Git remote together or not at all.

Guarantees: `push` updates every ref that it names, each only from the given value, or none; hooks and settings of the
clone have no part in it. Cannot: know whether a push whose answer was lost has happened; the caller reads the remote.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lib.errors import CommandError, GitPushError, RemoteError, RunError, SyncError
from lib.process import MINUTE, CommandFailed
from lib.remotes import repository
from lib.remotes.addresses import host_and_path
from lib.remotes.answers import Patience
from lib.remotes.credentials import Credentials
from lib.remotes.git_answers import BRIEFLY, because, explain
from lib.remotes.repository import Repository
from lib.sync.record import LEASE, RUNS, RunRecord, Stop, read_run

EARLIER = ("refs/intents/", "refs/heads/kaggle-intents/", "refs/heads/kaggle-runs/")
"""Prefixes of the refs of the protocol's first edition: they are left alone and reported."""
PUSH_TIMEOUT = 10 * MINUTE
OTHERWISE = (
    "use a clone that Git and DVC can open, free some space if the disk is full, check the DVC remote, and run the "
    "same again."
)
ANY = "*"
"""The `old` of an update that is made wherever the ref is, or if it does not exist."""


@dataclass(frozen=True)
class RefUpdate:
    """The update of one ref from `old` to `new`; None means that the ref does not exist."""

    ref: str
    old: str | None
    new: str | None


@dataclass(frozen=True)
class SeenRun:
    """A run's ref as read from the remote; `record` is None if this version cannot read it."""

    name: str
    commit: str
    record: RunRecord | None

    @property
    def lease(self) -> float:
        """Return the seconds for which its holder must be waited for."""
        return self.record.lease if self.record else LEASE


class RefMovedError(GitPushError):
    """A ref that a push would have moved is not where it was read."""

    def __init__(self, ref: str) -> None:
        super().__init__(f"{ref} is not where it was read.", remedy="run the same command again.")


@contextlib.contextmanager
def as_sync_errors(
    doing: str, redact: Callable[[str], str] = str, state: str = "nothing was changed."
) -> Iterator[None]:
    """Raise errors of this machine, of Git and of DVC within the block as `SyncError`, with their remedy."""
    from dvc.exceptions import DvcException

    try:
        yield
    except (CommandError, RemoteError, DvcException, OSError) as error:
        known = error if isinstance(error, RunError) else RunError(f"{type(error).__name__}: {error}")
        raise SyncError(
            redact(f"{doing} stopped: {known.what}"),
            state=state,
            remedy=known.remedy or OTHERWISE,
        ) from error


class Refs(Repository):
    """The refs of the Git remote, with those of runs."""

    def __init__(self, root: Path, credentials: Credentials) -> None:
        super().__init__(root, credentials)
        place = hashlib.sha256(host_and_path(self.url).encode()).hexdigest()
        self.identity_ref = f"refs/kaggle/repository-{place[:16]}"
        """Names the repository. The address is in the name, since `git push --mirror` copies every ref."""

    def read_runs(self, name: str = "") -> dict[str, SeenRun]:
        """Return {name: run} for every run's ref, or for one, in one request."""
        found = self.read_records(f"{RUNS}{name}*", "run.json")  # an exact name that is not there would be an error
        seen = (SeenRun(ref.removeprefix(RUNS), commit, read_run(text)) for ref, (commit, text) in found.items())
        return {run.name: run for run in seen if name in ("", run.name)}

    def read_records(self, pattern: str, file: str) -> dict[str, tuple[str, str]]:
        """Return {ref: (commit, text of `file` in it)} for every matching ref; the text is "" without that file."""
        with self._fetched(pattern):
            commits = self._mirrored(pattern)
            files = self._read_all(commits, file)
        return {ref: (commit, files.get(ref, {}).get(file, "")) for ref, commit in commits.items()}

    def write_record(self, record: RunRecord) -> str:
        """Write a run's record as a commit, and return it."""
        return self.write_file("run.json", record.to_json(), record.name)

    def write_question(self) -> str:
        """Write the commit of a question to a run, the same everywhere, and return it; HEAD may not be pushed."""
        return self.write_file("question", "", "Is this run alive?")

    def write_stop(self, stop: Stop) -> str:
        """Write the wish to stop a run as a commit of its own, and return it."""
        return self.write_file("stop.json", f"{stop.model_dump_json(indent=1)}\n", "Stop this run")

    def write_file(self, name: str, text: str, title: str, *parents: str) -> str:
        """Write a commit with one file and return it; no ref names it yet. The same input makes the same commit."""
        blob = self._git("hash-object", "-w", "--stdin", text=text).output.strip()
        tree = self._git("mktree", text=f"100644 blob {blob}\t{name}\n").output.strip()
        return self._commit_tree(tree, f"{title} [skip ci]\n", "1970-01-01T00:00:00Z", *parents)

    def build_commit(
        self, base: str, files: Mapping[str, Path], message: str, date: str, *, parent: str | None = None
    ) -> str:
        """Build the commit `base` plus `files` ({path: file with its content}) in a private index, and return it.

        Its parent is `parent`, or `base`. The files' bytes are stored as they are. `date` is ISO 8601.
        """
        listed = "".join(f"{_quoted(str(file))}\n" for file in files.values())
        with tempfile.TemporaryDirectory(prefix="kaggle-training-") as place:
            own = {"GIT_INDEX_FILE": f"{place}/index"}
            self._git("read-tree", base, env=own)
            blobs = self._git("hash-object", "-w", "--no-filters", "--stdin-paths", text=listed).output.split()
            entries = "".join(f"100644 {blob}\t{path}\0" for path, blob in zip(files, blobs, strict=True))
            # --replace: a file of the base may have the name of one of our folders, or the other way round
            self._git("update-index", "--add", "--replace", "-z", "--index-info", env=own, text=entries)
            tree = self._git("write-tree", env=own).output.strip()
        return self._commit_tree(tree, message, date, parent or base)

    def _commit_tree(self, tree: str, message: str, date: str, *parents: str) -> str:
        who = {"NAME": "Kaggle Training", "EMAIL": "kaggle-training@users.noreply.github.com", "DATE": date}
        # the same on every machine: the same files make the same commit
        env = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in who.items()}
        words = [word for parent in parents for word in ("-p", parent)]
        return self._git("commit-tree", tree, *words, env=env, text=message).output.strip()

    def push(self, *updates: RefUpdate) -> None:
        """Push all updates atomically, each only from its `old`; after a `GitPushError` all may have happened."""
        # hooks run also when the clone's own refs follow the push; not every host takes the user's push options
        words = ["-c", "core.hooksPath=/dev/null", "-c", "push.pushOption="]
        words += ["push", "--atomic", "--no-signed", "--no-follow-tags", "--recurse-submodules=no", "--quiet"]
        words += [f"--force-with-lease={update.ref}:{update.old or ''}" for update in updates if update.old != ANY]
        # a lease forces, too
        words += ["origin"] + [
            f"{'+' if update.old == ANY else ''}{update.new or ''}:{update.ref}" for update in updates
        ]
        try:
            self._git(*words, env=self._environment, timeout=PUSH_TIMEOUT)
        except CommandFailed as error:
            message = (error.answer.errors.strip() or error.answer.output.strip() or "no reason given")[-2000:]
            refs = ", ".join(update.ref for update in updates)
            answer = explain(message, BRIEFLY)
            refused = GitPushError(
                f"Git push failed{because(answer)}: {self.url} rejected {refs}:\n{message}", remedy=answer.remedy
            )
            refused.patience = answer.patience
            raise refused from error
        except CommandError as error:
            raise GitPushError(f"Git push failed: {error.what}", remedy=error.remedy) from error

    def push_patiently(self, updates: Callable[[], Iterable[RefUpdate]], has_happened: Callable[[], bool]) -> None:
        """Push, and repeat a failed push while its error may pass, unless the remote shows that it has happened."""
        patience = Patience(repository.PAUSES)
        while True:
            try:
                return self.push(*updates())
            except GitPushError as error:
                if has_happened():
                    return None
                if not patience.wait(error.patience):
                    raise


def _quoted(path: str) -> str:
    """Return a path as Git reads it from a list with one path per line."""
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
