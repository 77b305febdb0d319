"""Read the refs of the Git remote, and the files in their commits.

Guarantees: reading writes only to a private repository inside the clone's `.git`, a cache that is made anew when it is
damaged; the user's refs, index, HEAD and work tree are never touched. Only commands that may contact the remote receive
the token.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from lib.errors import CommandError, GitPushError
from lib.process import MINUTE, Completed, run_command
from lib.remotes.addresses import refuse_slash, without_user
from lib.remotes.answers import patiently
from lib.remotes.credentials import Credentials
from lib.remotes.git_answers import because, explain_error

NOTHING = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"  # the empty tree, which every repository has
BLOBS = "64k"  # `.dvc` files are smaller; larger blobs (images, weights) stay on the remote
PAUSES: tuple[float, ...] = (0.1, 0.5, 2.0, 5.0, 15.0, 30.0, 60.0, 60.0)
"""The longest pauses, in seconds, before a request is repeated: together the three minutes that remedies name."""


class StoredObject(BaseModel):
    """One object: its name on the DVC remote (hex MD5 of its content) and its size in bytes; -1 is unknown."""

    model_config = ConfigDict(frozen=True)

    oid: str
    size: int


def origin_of(root: Path) -> str:
    """Return the URL of the clone's `origin`, a relative path as an absolute one; empty if there is none.

    A login in it is not hidden. Raises `RemoteError` for a password that Git cannot read, whose parts Git would print.
    """
    url = run_command(["git", "remote", "get-url", "origin"], cwd=root, timeout=MINUTE, check=False).output.strip()
    refuse_slash("remote.origin.url in .git/config", url, "git remote set-url origin URL")
    return str((top_of(root) / url).resolve()) if url.startswith(".") else url


def top_of(folder: Path) -> Path:
    """Return the root of the Git clone that contains a folder; the folder itself if there is none."""
    words = ["git", "rev-parse", "--show-toplevel"]
    return Path(run_command(words, cwd=folder, timeout=MINUTE, check=False).output.strip() or folder)


class Repository:
    """The remote `origin` of the clone at `root`."""

    def __init__(self, root: Path, credentials: Credentials) -> None:
        self.root = root
        self._redact = credentials.redact
        self._url = origin_of(root)
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

        Repeats the command while its refusal passes by itself. Raises `GitPushError`.
        """
        ask = partial(self._git, *words, cwd=cwd, env=self._environment, timeout=timeout, text=text)
        try:
            return patiently(ask, explain_error, PAUSES)
        except CommandError as error:
            answer = explain_error(error)
            what = f"the Git remote {self.url} cannot be read{because(answer)}: {error.what}"
            raise GitPushError(what, remedy=answer.remedy) from error

    def list_refs(self, *patterns: str) -> dict[str, str]:
        """Return {full ref name: commit} for the refs on the remote whose full name matches; all without a pattern."""
        lines = self._remote("ls-remote", "origin", *patterns).output.splitlines()
        refs = {ref: commit for commit, _, ref in (line.partition("\t") for line in lines)}
        # Git also lists refs/heads/backup/refs/heads/x for refs/heads/x: it compares the end of a name
        return {ref: refs[ref] for ref in refs if not patterns or any(fnmatchcase(ref, each) for each in patterns)}

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

    def read_files(self, ref: str, *patterns: str, commit: str = "") -> dict[str, str]:
        """Return {path: text} of the matching files in the commit at `ref`, or in `commit` from its history.

        `patterns` are globs whose * also matches slashes. Raises `GitPushError` if the remote does not answer or has no
        such commit.
        """
        with self._fetched(ref):
            found = self._read_all({ref: commit or ref}, *patterns)
            if not found:
                raise GitPushError(f"{self.url} has no commit {commit or ref}.", remedy="run the same command again.")
        return found[ref]

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
            return self._read_all(self._mirrored(*wanted), *patterns)

    def _mirrored(self, *patterns: str) -> dict[str, str]:
        """Return {ref: commit} for the refs of the mirror whose full name matches."""
        lines = self._git("for-each-ref", "--format=%(refname) %(objectname)", cwd=self._mirror).output.splitlines()
        refs = dict(line.split() for line in lines)
        # with patterns, Git would leave out refs/heads/a/b for refs/heads/*
        return {ref: refs[ref] for ref in refs if any(fnmatchcase(ref, each) for each in patterns)}

    def _read_all(self, commits: Mapping[str, str], *patterns: str) -> dict[str, dict[str, str]]:
        """Return {key: {path: text}} of the matching files in each commit of the mirror that exists."""
        found = self._trees(list(commits.values()), *patterns)
        texts = self._blobs(blob for files in found.values() for blob in files.values())
        return {
            key: {path: texts[blob] for path, blob in found[commit].items()}
            for key, commit in commits.items()
            if commit in found
        }

    def _trees(self, commits: Sequence[str], *patterns: str) -> dict[str, dict[str, str]]:
        """Return {commit: {path: blob name}} of the matching files in each commit that exists, by two subprocesses."""
        asked = "".join(f"{commit}^{{tree}}\n" for commit in commits)
        answers = self._remote("cat-file", "--batch-check=%(objectname)", cwd=self._mirror, text=asked).output
        trees = {
            commit: tree
            for commit, tree in zip(commits, answers.splitlines(), strict=True)
            if not tree.endswith(" missing")
        }
        # ls-tree lists one tree; the difference to the empty one is the same list, for many
        pairs = "".join(f"{NOTHING} {tree}\n" for tree in set(trees.values()))
        words = ("diff-tree", "--stdin", "-r", "-z", "--no-renames")
        output = self._remote(*words, "--", *patterns, cwd=self._mirror, text=pairs).output
        _, *parts = re.split(rf"{NOTHING} ([0-9a-f]{{40}})\n", output)
        found = {}
        for tree, listed in zip(parts[::2], parts[1::2], strict=True):
            about, paths = listed.split("\0")[:-1:2], listed.split("\0")[1::2]
            found[tree] = {path: each.split()[3] for each, path in zip(about, paths, strict=True)}
        return {commit: found.get(tree, {}) for commit, tree in trees.items()}

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

    def read_texts(self, commit: str, paths: Iterable[str]) -> dict[str, str]:
        """Return {path: text} of those of the files at `paths` that a commit of the clone has."""
        listed = self._git("--literal-pathspecs", "ls-tree", "-z", "--full-tree", commit, "--", *paths).output
        entries = (entry.partition("\t") for entry in listed.split("\0") if entry)
        blobs = {path: about.split()[2] for about, _, path in entries}
        texts = self._blobs(blobs.values(), self.root)
        return {path: texts[blob] for path, blob in blobs.items()}

    def bring(self, ref: str, commit: str) -> None:
        """Fetch a commit, which the remote's `ref` names, into the clone; no local ref is written."""
        if self._git("cat-file", "-e", f"{commit}^{{commit}}", check=False).status:
            words = ("--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance", "--refmap=")
            self._remote("fetch", *words, "--no-recurse-submodules", "origin", ref, timeout=10 * MINUTE)


def outputs_of(path: str, text: str) -> Iterator[tuple[str, StoredObject]]:
    """Yield each output of a `.dvc` file: its path in the repository and its object; a size of -1 is unknown."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        outs = YAML(typ="safe", pure=True).load(text)["outs"]
        for out in outs:
            yield str(Path(path).parent / out["path"]), StoredObject(oid=str(out["md5"]), size=int(out.get("size", -1)))
    except (YAMLError, ValueError, KeyError, TypeError):
        return
