"""Read the refs of the Git remote, and update several of them together or not at all.

Guarantees: `push` updates every ref that it names, each only from the given value, or none. Reading writes only to a
private repository inside the clone's `.git`; the user's refs, index, HEAD and work tree are never touched.
Cannot: know whether a push whose answer was lost has happened; the caller must read the remote again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import random
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from lib.errors import CommandError, GitPushError
from lib.process import MINUTE, CommandFailed, Completed, run_command
from lib.remotes.credentials import Credentials, without_user
from lib.sync.record import LEASE, RUNS, RunRecord, StoredObject, read_run

EARLIER = ("refs/intents/", "refs/heads/kaggle-intents/", "refs/heads/kaggle-runs/")
"""Prefixes of the refs of the protocol's first edition: they are left alone and reported."""
BLOBS = "64k"  # `.dvc` files are smaller; larger blobs (images, weights) stay on the remote
PUSH_TIMEOUT = 10 * MINUTE
PASSES = re.compile(
    r"cannot lock ref '[^']*': unable to (resolve reference|create)|returned error: (403|429|5\d\d)|rate limit",
    re.IGNORECASE,
)
"""Messages after which reading is repeated: another process holds a lock, or the host is overloaded. Git does not show
the text of a 403: it may be a rate limit."""
PAUSES = (0.1, 0.5, 2.0, 5.0, 15.0)  # seconds


def pauses() -> Iterator[float | None]:
    """Yield the pause in seconds after each attempt, random so that sessions do not repeat in step; None at the end."""
    yield from (random.uniform(pause / 2, pause) for pause in PAUSES)
    yield None


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
    """A ref that a push would have moved is not where it was read; `commit` is where it is now, or None."""

    def __init__(self, ref: str, commit: str | None) -> None:
        self.ref, self.commit = ref, commit
        super().__init__(
            f"{ref} is not where it was read: it is {f'at {commit}' if commit else 'gone'}.",
            remedy="run the same command again.",
        )


class Refs:
    """The refs of the remote `origin` of the clone at `root`."""

    def __init__(self, root: Path, credentials: Credentials) -> None:
        self.root = root
        self._redact = credentials.redact
        self._url = self._git("remote", "get-url", "origin").output.strip()
        self._environment = credentials.git_environment(self._url)
        self.url = without_user(self._url)
        words = ("rev-parse", "--path-format=absolute", "--git-common-dir", "--show-object-format")
        git_dir, object_format = self._git(*words).output.splitlines()
        if object_format != "sha1":
            raise GitPushError(
                f"{self.url} is a Git repository with {object_format} object names, which DVC cannot open.",
                remedy="use a repository with SHA-1 object names (`git init --object-format=sha1`).",
            )
        self.private = Path(git_dir) / "kaggle-sync"
        self.identity_ref = f"refs/kaggle/repository-{hashlib.sha256(_place(self.url).encode()).hexdigest()[:16]}"
        """Names the repository. The address is in the name, since `git push --mirror` copies every ref."""
        # one mirror per address: the refs of an old remote prove nothing about a new one
        self._mirror = self.private / f"mirror-{hashlib.sha256(self._url.encode()).hexdigest()[:12]}.git"

    def _git(
        self,
        *words: str,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 2 * MINUTE,
        text: str | None = None,
        check: bool = True,
    ) -> Completed:
        # without a mirror that Git can open, it would find the user's repository around it and fetch into that one
        where = [] if cwd in (None, self.root) else ["--git-dir=."]
        return run_command(
            ["git", *where, *words],
            cwd=cwd or self.root, env=env, timeout=timeout, text=text, check=check, redact=self._redact,
        )  # fmt: skip

    def _remote(
        self,
        *words: str,
        cwd: Path | None = None,
        timeout: float = 2 * MINUTE,
        text: str | None = None,
    ) -> Completed:
        """Run a command that may read from the remote; only such commands and pushes receive the token.

        Repeats the command while the host is overloaded. Raises `GitPushError`.
        """
        for pause in pauses():
            try:
                return self._git(*words, cwd=cwd, env=self._environment, timeout=timeout, text=text)
            except CommandError as error:
                if pause is None or not PASSES.search(error.what):
                    raise GitPushError(
                        f"the Git remote {self.url} does not answer: {error.what}",
                        remedy=remedy_for(
                            error.what, "check the network and GITHUB_TOKEN, then run sync_outputs() again."
                        ),
                    ) from error
            time.sleep(pause)
        raise AssertionError

    # ── reading ────────────────────────────────────────────────────────────────────────────────────────────────────

    def list_refs(self, *patterns: str) -> dict[str, str]:
        """Return {full ref name: commit} for the refs on the remote whose full name matches; all without a pattern."""
        lines = self._remote("ls-remote", "origin", *patterns).output.splitlines()
        refs = {ref: commit for commit, _, ref in (line.partition("\t") for line in lines)}
        # Git also lists refs/heads/backup/refs/heads/x for refs/heads/x: it compares the end of a name
        return {ref: refs[ref] for ref in refs if not patterns or any(fnmatchcase(ref, each) for each in patterns)}

    def read_runs(self, name: str = "") -> dict[str, SeenRun]:
        """Return {name: run} for every run's ref, or for one, in one request."""
        with self._fetched(f"{RUNS}{name}*"):  # an exact name that is not there would be an error
            shown = "--format=%(objectname) %(refname)"
            lines = self._git("for-each-ref", shown, f"{RUNS}{name}*", cwd=self._mirror).output.splitlines()
            found = {ref.removeprefix(RUNS): commit for commit, _, ref in (line.partition(" ") for line in lines)}
            texts = self._files_at({commit: f"{commit}:run.json" for commit in found.values()})
        return {
            run: SeenRun(run, commit, read_run(texts.get(commit, "")))
            for run, commit in found.items()
            if name in ("", run)
        }

    def _files_at(self, names: Mapping[str, str]) -> dict[str, str]:
        """Return {key: text} of those of the files, given as `commit:path`, that exist."""
        # asked first: a read that fails must raise; taken for a missing file, it would hide a run
        asked = "".join(f"{name}\n" for name in names.values())
        answers = self._remote("cat-file", "--batch-check=%(objectname)", cwd=self._mirror, text=asked).output
        named = zip(names, answers.splitlines(), strict=True)
        blobs = {key: answer for key, answer in named if not answer.endswith(" missing")}
        texts = self._blobs(blobs.values())
        return {key: texts[blob] for key, blob in blobs.items()}

    def head(self) -> str:
        """Return the clone's HEAD commit."""
        return self._git("rev-parse", "HEAD").output.strip()

    def named_objects(self, *patterns: str) -> set[str]:
        """Return every object (hex MD5, `.dir` included) that a `.dvc` or `dvc.lock` file of a reachable commit names.

        `patterns` are the refs that count, for instance `refs/heads/*`. History counts too: if a later commit removes
        the `.dvc` files of a publication, its objects are still named.
        """
        globs = [f"--glob={pattern}" for pattern in patterns]
        # -m compares a merge with each of its parents: a file that only the merge contains is found too
        pointers = ("*.dvc", "**/dvc.lock", "dvc.lock")
        shown = ("--format=", "--raw", "-m", "--root", "--no-abbrev", "--no-renames")
        with self._fetched(*patterns):
            raw = self._git("log", *shown, *globs, "--", *pointers, cwd=self._mirror).output
            blobs = {line.split()[3] for line in raw.splitlines() if line.startswith(":")} - {"0" * 40}
            texts = self._blobs(blobs).values()
        return {oid for text in texts for oid in re.findall(r"\bmd5:\s*['\"]?([0-9a-f]{32}(?:\.dir)?)", text)}

    def published_objects(self, *patterns: str) -> dict[str, dict[str, StoredObject]]:
        """Return {ref: {path: object}}: what the `.dvc` files in the commit of each matching ref name.

        Paths are those in the repository. A `.dvc` file that is not in DVC's format is skipped: DVC could not pull it
        either.
        """
        with self._fetched(*patterns):
            found = {ref: self._tree(ref, "*.dvc") for ref in self._mirrored(*patterns)}
            texts = self._blobs(blob for pointers_of in found.values() for blob in pointers_of.values())
        return {
            ref: {name: item for path, blob in pointers_of.items() for name, item in _outputs(path, texts[blob])}
            for ref, pointers_of in found.items()
        }

    def read_files(self, ref: str, *patterns: str, commit: str = "") -> dict[str, str]:
        """Return {path: text} of the matching files in the commit at `ref`, or in `commit` from its history.

        `patterns` are globs whose * also matches slashes. Raises `GitPushError` if the remote does not answer or has no
        such commit.
        """
        with self._fetched(ref):
            found = self._tree(commit or ref, *patterns)
            texts = self._blobs(found.values())
        return {path: texts[blob] for path, blob in found.items()}

    def write_files(self, ref: str, folder: str, target: Path) -> None:
        """Write the files below `folder` in the commit at `ref` into the folder `target`, byte for byte.

        Raises `GitPushError` if the remote does not answer.
        """
        with self._fetched(ref):
            # the index describes files that an earlier call wrote into another folder
            (self._mirror / "index").unlink(missing_ok=True)
            self._remote(
                "-c", "core.autocrlf=false", f"--work-tree={target}", "read-tree", "--reset", "-u", f"{ref}:{folder}",
                cwd=self._mirror, timeout=10 * MINUTE,
            )  # fmt: skip

    def read_files_of_all(self, refs: str | tuple[str, ...], *patterns: str) -> dict[str, dict[str, str]]:
        """Return {ref: {path: text}} for every matching ref, in one request if the files are small."""
        wanted = (refs,) if isinstance(refs, str) else refs
        with self._fetched(*wanted):
            found = {ref: self._tree(ref, *patterns) for ref in self._mirrored(*wanted)}
            texts = self._blobs(blob for files in found.values() for blob in files.values())
        return {ref: {path: texts[blob] for path, blob in files.items()} for ref, files in found.items()}

    def _mirrored(self, *patterns: str) -> list[str]:
        """Return the refs of the mirror whose full name matches."""
        refs = self._git("for-each-ref", "--format=%(refname)", cwd=self._mirror).output.split()
        # with patterns, Git would leave out refs/heads/a/b for refs/heads/*
        return [ref for ref in refs if any(fnmatchcase(ref, each) for each in patterns)]

    def _tree(self, tree: str, *patterns: str) -> dict[str, str]:
        """Return {path: blob name} of the matching files in a commit."""
        listed = self._remote("ls-tree", "-r", "-z", tree, cwd=self._mirror).output.split("\0")
        entries = (entry.partition("\t") for entry in listed if entry)
        matching = ((about, path) for about, _, path in entries if any(fnmatchcase(path, each) for each in patterns))
        return {path: about.split()[2] for about, path in matching}

    def _blobs(self, names: Iterable[str], repository: Path | None = None) -> dict[str, str]:
        """Return {blob name: text}, read from `repository` (default: the mirror) by one subprocess.

        Blobs that the mirror lacks come from the remote.
        """
        wanted = sorted(set(names))
        if not wanted:
            return {}
        output = self._remote(
            "cat-file", "--batch", cwd=repository or self._mirror, text="\n".join(wanted) + "\n"
        ).output
        _, *parts = re.split(r"^([0-9a-f]{40,64}) blob \d+\n", output, flags=re.MULTILINE)
        return {name: text.removesuffix("\n") for name, text in zip(parts[::2], parts[1::2], strict=True)}

    @contextlib.contextmanager
    def _fetched(self, *patterns: str) -> Iterator[None]:
        """Fetch the remote's refs of these patterns into the mirror, and keep them unchanged within the context.

        Locked against other processes of this clone: an older fetch of theirs could remove refs that ours has read.
        """
        self.private.mkdir(parents=True, exist_ok=True)
        with (self.private / "mirror.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                self._fetch(patterns)
            except GitPushError:
                # the mirror is only a cache: a damaged one, or a lock that a killed process left in it, is made anew
                shutil.rmtree(self._mirror, ignore_errors=True)
                self._fetch(patterns)
            try:
                yield
            except (CommandError, GitPushError):
                shutil.rmtree(self._mirror, ignore_errors=True)  # the next call finds no damaged one
                raise

    def _fetch(self, patterns: Iterable[str]) -> None:
        if not self._mirror.exists():
            self._make_mirror()
        self._remote(
            "fetch", "--quiet", "--prune", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance",
            f"--filter=blob:limit={BLOBS}", "origin", *(f"+{pattern}:{pattern}" for pattern in patterns),
            cwd=self._mirror, timeout=10 * MINUTE,
        )  # fmt: skip

    def _make_mirror(self) -> None:
        """Create the mirror under another name, then rename it: an incomplete mirror would be used for ever."""
        part = self._mirror.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        self._git("init", "--quiet", "--bare", str(part))
        # a partial clone: blobs that the filter left out can be fetched later, one by one
        for key, value in (("url", self._url), ("promisor", "true"), ("partialclonefilter", f"blob:limit={BLOBS}")):
            self._git("config", f"remote.origin.{key}", value, cwd=part)
        part.rename(self._mirror)

    # ── writing ────────────────────────────────────────────────────────────────────────────────────────────────────

    def write_record(self, record: RunRecord) -> str:
        """Write the record as a commit of its own and return the commit; no ref names it yet."""
        return self._write_file("run.json", record.to_json(), f"{record.name} [skip ci]\n")

    def write_random(self) -> str:
        """Write a commit that nobody else has, and return it."""
        return self._write_file("identity", f"{secrets.token_hex(20)}\n", "Identity of this repository [skip ci]\n")

    def write_question(self) -> str:
        """Write the commit of a question to a run, the same everywhere, and return it; HEAD may not be pushed."""
        return self._write_file("question", "", "Is this run alive? [skip ci]\n")

    def _write_file(self, name: str, text: str, message: str) -> str:
        blob = self._git("hash-object", "-w", "--stdin", text=text).output.strip()
        tree = self._git("mktree", text=f"100644 blob {blob}\t{name}\n").output.strip()
        return self._git("commit-tree", tree, env=_signature("1970-01-01T00:00:00Z"), text=message).output.strip()

    def bring(self, ref: str, commit: str) -> None:
        """Fetch a commit, which the remote's `ref` names, into the clone; no local ref is written."""
        if self._git("cat-file", "-e", f"{commit}^{{commit}}", check=False).status:
            words = ("--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance", "--refmap=")
            self._remote("fetch", *words, "--no-recurse-submodules", "origin", ref, timeout=10 * MINUTE)

    def read_texts(self, commit: str, paths: Iterable[str]) -> dict[str, str]:
        """Return {path: text} of those of the files at `paths` that a commit of the clone has."""
        listed = self._git("--literal-pathspecs", "ls-tree", "-z", "--full-tree", commit, "--", *paths).output
        entries = (entry.partition("\t") for entry in listed.split("\0") if entry)
        blobs = {path: about.split()[2] for about, _, path in entries}
        texts = self._blobs(blobs.values(), self.root)
        return {path: texts[blob] for path, blob in blobs.items()}

    def build_commit(
        self, base: str, files: Mapping[str, Path], message: str, date: str, *, parent: str | None = None
    ) -> str:
        """Build the commit `base` plus `files` ({path: file with its content}) in a private index, and return it.

        Its parent is `parent`, or `base`. The files' bytes are stored as they are. `date` (ISO 8601) is the only part
        of the commit that is not content: the same files make the same commit.
        """
        index = self.private / f"index-{os.getpid()}-{threading.get_ident()}"
        self.private.mkdir(parents=True, exist_ok=True)
        index.unlink(missing_ok=True)
        own = {"GIT_INDEX_FILE": str(index)}
        listed = "".join(f"{_quoted(str(file))}\n" for file in files.values())
        try:
            self._git("read-tree", base, env=own)
            blobs = self._git("hash-object", "-w", "--no-filters", "--stdin-paths", text=listed).output.split()
            entries = "".join(f"100644 {blob}\t{path}\0" for path, blob in zip(files, blobs, strict=True))
            # --replace: a file of the base may have the name of one of our folders, or the other way round
            self._git("update-index", "--add", "--replace", "-z", "--index-info", env=own, text=entries)
            tree = self._git("write-tree", env=own).output.strip()
        finally:
            index.unlink(missing_ok=True)
        words = ("commit-tree", tree, "-p", parent or base)
        return self._git(*words, env=_signature(date), text=message).output.strip()

    def push(self, *updates: RefUpdate) -> None:
        """Push all updates atomically, each only from its `old`. Raises `GitPushError`.

        After an error either all updates have happened or none; only the remote knows which.
        """
        words = ["-c", "core.hooksPath=/dev/null"]  # hooks run also when the clone's own refs follow the push
        words += ["push", "--atomic", "--no-signed", "--no-follow-tags", "--recurse-submodules=no", "--quiet"]
        words += [f"--force-with-lease={update.ref}:{update.old or ''}" for update in updates if update.old != ANY]
        words += ["origin"] + [f"{update.new or ''}:{update.ref}" for update in updates]
        try:
            self._git(*words, env=self._environment, timeout=PUSH_TIMEOUT)
        except CommandFailed as error:
            message = (error.answer.errors.strip() or error.answer.output.strip() or "no reason given")[-2000:]
            refs = ", ".join(update.ref for update in updates)
            remedy = remedy_for(message, "read the host's answer above, fix its cause and run sync_outputs() again.")
            raise GitPushError(f"Git push failed: {self.url} rejected {refs}:\n{message}", remedy=remedy) from error
        except CommandError as error:
            raise GitPushError(f"Git push failed: {error.what}", remedy=error.remedy) from error


def _place(url: str) -> str:
    """Return the host and path of an address: a repository has one identity over HTTPS and SSH."""
    bare = re.sub(r"^\w+://([^/@]*@)?", "", url)
    short = re.fullmatch(r"(?:[^/@:]+@)?([^/@:]+):(?!\d+/)(.+)", bare)  # git@host:path
    return (f"{short[1]}/{short[2]}" if short else bare).rstrip("/").removesuffix(".git")


def _outputs(path: str, text: str) -> Iterator[tuple[str, StoredObject]]:
    """Yield each output of a `.dvc` file: its path in the repository and its object; a size of -1 is unknown."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        outs = YAML(typ="safe", pure=True).load(text)["outs"]
        for out in outs:
            yield str(Path(path).parent / out["path"]), StoredObject(oid=str(out["md5"]), size=int(out.get("size", -1)))
    except (YAMLError, ValueError, KeyError, TypeError):
        return


def _signature(date: str) -> dict[str, str]:
    """Return author and committer of the transaction's commits, which are the same on every machine."""
    who = {"NAME": "Kaggle Training", "EMAIL": "kaggle-training@users.noreply.github.com", "DATE": date}
    return {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in who.items()}


_CAUSES: Iterable[tuple[str, str]] = (
    (
        r"Authentication failed|could not read Username|Invalid username|HTTP Basic: Access denied|\b401\b",
        "check that GITHUB_TOKEN in secrets.json is right and not expired, and has the `repo` scope.",
    ),
    (
        r"rate limit|\b429\b|RPC failed; HTTP 403",
        "the Git host limits requests; start fewer sessions at a time, and run sync_outputs() again in some minutes.",
    ),
    (
        r"Permission .* denied|Write access|\b403\b|read-only|not allowed to push",
        "give GITHUB_TOKEN write permission for this repository (scope `repo`; fine-grained: Contents, write).",
    ),
    (r"workflow", "give GITHUB_TOKEN the `workflow` scope: the branch holds workflow files."),
    (
        r"hidden ref|funny refname",
        "use a Git host that accepts refs/runs/*, refs/asks/* and refs/kaggle/*, not only branches and tags.",
    ),
    (
        r"non-fast-forward|denyNonFastForwards|deletion prohibited|denyDeletes|cannot delete",
        "allow deletions of kaggle-* branches, and forced updates of refs/runs/*, in the host's branch rules.",
    ),
    (
        r"protected|GH006|hook declined|rule violations",
        (
            "allow new branches named kaggle-* in the host's branch rules, and the refs refs/runs/*, refs/asks/* and "
            "refs/kaggle/*."
        ),
    ),
    (
        r"Repository not found|\b404\b",
        "check the repository's address, and that GITHUB_TOKEN may read it: a host reports a hidden one as missing.",
    ),
    (r"\b50[0-9]\b|Internal Server Error", "the Git host is failing; run sync_outputs() again in some minutes."),
    (
        r"does not support .*atomic",
        "use a Git host that supports atomic pushes (GitHub, GitLab, Gitea and plain Git do).",
    ),
    (
        r"stale info|cannot lock ref",
        (
            "run sync_outputs() again, since another process may have moved the ref; if that does not help, the name "
            "is too long, another ref is named like a folder of this one, or a lock file was left on the host."
        ),
    ),
    (
        r"Could not resolve|unable to access|Connection|timed out|does not appear to be a git repository",
        "check the network and the repository's address, then run sync_outputs() again.",
    ),
)


def _quoted(path: str) -> str:
    """Return a path as Git reads it from a list with one path per line."""
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def remedy_for(message: str, otherwise: str) -> str:
    """Return the remedy that fits the host's message; addresses and ref names in the message are ignored."""
    bare = re.sub(r"\w+://\S+|\S*kaggle-\S+|refs/\S+", "", message)
    return next((remedy for pattern, remedy in _CAUSES if re.search(pattern, bare, re.IGNORECASE)), otherwise)
