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
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from lib.errors import CommandError, GitPushError
from lib.process import MINUTE, Completed, run_command
from lib.remotes.credentials import Credentials, without_user
from lib.sync.intent import Intent, StoredObject, read_intent

INTENT_PLACES = ("refs/intents/", "refs/heads/kaggle-intents/")
"""Prefixes of intents; the second is for hosts that accept only branches and tags. Readers always read both."""
BLOBS = "64k"  # `.dvc` files are smaller; larger blobs (images, weights) stay on the remote
PUSH_TIMEOUT = 10 * MINUTE
PASSES = re.compile(
    r"cannot lock ref '[^']*': unable to (resolve reference|create)|returned error: (429|5\d\d)|rate limit",
    re.IGNORECASE,
)
"""Messages after which a command is repeated. The first: another push holds a lock, or removes the folder in which the
ref would be stored; a ref at another commit (`is at … but`) is not a lock. The others: the host is overloaded. A
repeated push that has happened after all is rejected, which its caller resolves by reading the remote."""
PAUSES = (0.1, 0.5, 2.0, 5.0, 15.0)  # seconds; each is shortened at random, so that sessions do not repeat in step


@dataclass(frozen=True)
class RefUpdate:
    """The update of one ref from `old` to `new`; None means that the ref does not exist."""

    ref: str
    old: str | None
    new: str | None


@dataclass(frozen=True)
class SeenIntent:
    """An intent as read from the remote; `record` is None if this version cannot read it."""

    ref: str
    commit: str
    record: Intent | None


class RefusedByHostError(GitPushError):
    """The host was reached, accepted the credentials, and rejected these refs."""


class Refs:
    """The refs of the remote `origin` of the clone at `root`."""

    def __init__(self, root: Path, credentials: Credentials) -> None:
        self.root = root
        self._redact = credentials.redact
        self._url = self._git("remote", "get-url", "origin").output.strip()
        self._environment = credentials.git_environment(self._url)
        self.url = without_user(self._url)
        git_dir = Path(self._git("rev-parse", "--path-format=absolute", "--git-common-dir").output.strip())
        self.private = git_dir / "kaggle-sync"
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
        return run_command(
            ["git", *words], cwd=cwd or self.root, env=env, timeout=timeout, text=text, check=check, redact=self._redact
        )

    def _remote(
        self,
        *words: str,
        cwd: Path | None = None,
        timeout: float = 2 * MINUTE,
        text: str | None = None,
        check: bool = True,
    ) -> Completed:
        """Run a command that may contact the remote; only such commands receive the token.

        Repeats the command while the host is overloaded. Raises `GitPushError`.
        """
        for pause in (*PAUSES, None):
            try:
                answer = self._git(*words, cwd=cwd, env=self._environment, timeout=timeout, text=text, check=check)
                if pause is None or answer.status == 0 or not PASSES.search(answer.errors):
                    break
            except CommandError as error:
                if pause is None or not PASSES.search(error.what):
                    raise GitPushError(
                        f"the Git remote {self.url} does not answer: {error.what}",
                        remedy=remedy_for(
                            error.what, "check the network and GITHUB_TOKEN, then run sync_outputs() again."
                        ),
                    ) from error
            time.sleep(random.uniform(pause / 2, pause))
        return answer

    # ── reading ────────────────────────────────────────────────────────────────────────────────────────────────────

    def list_refs(self, *patterns: str) -> dict[str, str]:
        """Return {full ref name: commit} for the refs on the remote whose full name matches; all without a pattern."""
        lines = self._remote("ls-remote", "origin", *patterns).output.splitlines()
        refs = {ref: commit for commit, _, ref in (line.partition("\t") for line in lines)}
        # Git also lists refs/heads/backup/refs/heads/x for refs/heads/x: it compares the end of a name
        return {ref: refs[ref] for ref in refs if not patterns or any(fnmatchcase(ref, each) for each in patterns)}

    def read_intents(self) -> list[SeenIntent]:
        """Read every intent on the remote in one request."""
        intents = []
        with self._fetched(*(f"{place}*" for place in INTENT_PLACES)):
            shown = "--format=%(objectname) %(refname)"
            listed = self._git("for-each-ref", shown, *INTENT_PLACES, cwd=self._mirror).output
            for line in listed.splitlines():
                commit, _, ref = line.partition(" ")
                # a failed read raises: taken for a record of another version, it would hide a live intent
                record = None
                if self._git("ls-tree", commit, "intent.json", cwd=self._mirror).output:
                    text = self._remote("cat-file", "blob", f"{commit}:intent.json", cwd=self._mirror).output
                    record = read_intent(text)
                intents.append(SeenIntent(ref, commit, record))
        return intents

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
            refs = self._git("for-each-ref", "--format=%(refname)", *patterns, cwd=self._mirror).output.split()
            found = {ref: self._tree(ref, "*.dvc") for ref in refs}
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

    def read_files_of_all(self, refs: str, *patterns: str) -> dict[str, dict[str, str]]:
        """Return {ref: {path: text}} for every matching ref, in one request if the files are small."""
        with self._fetched(refs):
            listed = self._git("for-each-ref", "--format=%(refname)", refs, cwd=self._mirror).output.split()
            found = {ref: self._tree(ref, *patterns) for ref in listed}
            texts = self._blobs(blob for files in found.values() for blob in files.values())
        return {ref: {path: texts[blob] for path, blob in files.items()} for ref, files in found.items()}

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

    def roots(self) -> set[str]:
        """Return the repository's root commits, which identify it in every clone, even in a shallow one.

        Branches that runs have published are skipped: a thousand runs do not change the roots of a repository.
        """
        with self._fetched("refs/heads/*", "^refs/heads/kaggle-*"):
            heads = ("--exclude=refs/heads/kaggle-*", "--glob=refs/heads/*")
            return set(self._git("rev-list", "--max-parents=0", *heads, cwd=self._mirror).output.split())

    @contextlib.contextmanager
    def _fetched(self, *patterns: str) -> Iterator[None]:
        """Fetch the remote's refs of these patterns into the mirror, and keep them unchanged within the context.

        A pattern that begins with ^ excludes refs from the others.
        Locked against other processes of this clone: an older fetch of theirs could remove refs that ours has read.
        """
        self.private.mkdir(parents=True, exist_ok=True)
        with (self.private / "mirror.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self._mirror.exists():
                self._make_mirror()
            for left in [*self._mirror.glob("*.lock"), *(self._mirror / "refs").rglob("*.lock")]:
                left.unlink(missing_ok=True)  # of a process that was killed: nobody else works in the mirror now
            self._remote(
                "fetch", "--quiet", "--prune", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance",
                f"--filter=blob:limit={BLOBS}", "origin",
                *(pattern if pattern.startswith("^") else f"+{pattern}:{pattern}" for pattern in patterns),
                cwd=self._mirror, timeout=10 * MINUTE,
            )  # fmt: skip
            yield

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

    def write_intent(self, intent: Intent) -> str:
        """Write the record as a commit of its own and return the commit; no ref names it yet."""
        blob = self._git("hash-object", "-w", "--stdin", text=intent.to_json()).output.strip()
        tree = self._git("mktree", text=f"100644 blob {blob}\tintent.json\n").output.strip()
        message = f"{intent.state}: {intent.branch}\n\n[skip ci]\n"
        return self._git("commit-tree", tree, env=_signature("1970-01-01T00:00:00Z"), text=message).output.strip()

    def read_texts(self, commit: str, paths: Iterable[str]) -> dict[str, str]:
        """Return {path: text} of those of the files at `paths` that a commit of the clone has."""
        listed = self._git("--literal-pathspecs", "ls-tree", "-z", "--full-tree", commit, "--", *paths).output
        entries = (entry.partition("\t") for entry in listed.split("\0") if entry)
        blobs = {path: about.split()[2] for about, _, path in entries}
        texts = self._blobs(blobs.values(), self.root)
        return {path: texts[blob] for path, blob in blobs.items()}

    def build_commit(self, base: str, files: Mapping[str, Path], message: str, date: str) -> str:
        """Build the commit `base` plus `files` ({path: file with its content}) in a private index, and return it.

        The files' bytes are stored as they are. `date` (ISO 8601) is the only part of the commit that is not content:
        the same files make the same commit.
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
        return self._git("commit-tree", tree, "-p", base, env=_signature(date), text=message).output.strip()

    def push(self, *updates: RefUpdate) -> None:
        """Push all updates atomically, each only from its `old`. Raises `GitPushError`.

        After an error either all updates have happened or none; only the remote knows which.
        """
        words = ["--atomic", "--no-verify", "--no-signed", "--no-follow-tags", "--recurse-submodules=no", "--quiet"]
        words += [f"--force-with-lease={update.ref}:{update.old or ''}" for update in updates]
        words += ["origin"] + [f"{update.new or ''}:{update.ref}" for update in updates]
        try:
            answer = self._remote("push", *words, timeout=PUSH_TIMEOUT, check=False)
        except GitPushError as error:
            raise GitPushError(f"Git push failed: {error.what}", remedy=error.remedy) from error
        if answer.status != 0:
            raise _refusal(answer, self.url, [update.ref for update in updates])


def _outputs(path: str, text: str) -> Iterator[tuple[str, StoredObject]]:
    """Yield each output of a `.dvc` file: its path in the repository and its object; a size of -1 is unknown."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        outs = YAML(typ="safe", pure=True).load(text)["outs"]
        for out in outs:
            yield str(Path(path).parent / out["path"]), StoredObject(str(out["md5"]), int(out.get("size", -1)))
    except (YAMLError, ValueError, KeyError, TypeError):
        return


def _signature(date: str) -> dict[str, str]:
    """Return author and committer of the transaction's commits, which are the same on every machine."""
    who = {"NAME": "Kaggle Training", "EMAIL": "kaggle-training@users.noreply.github.com", "DATE": date}
    return {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in who.items()}


_CAUSES: Iterable[tuple[str, str]] = (
    (r"stale info|fetch first", "another process moved the same ref; run sync_outputs() again."),
    (
        r"Authentication failed|could not read Username|Invalid username|HTTP Basic: Access denied|\b401\b",
        "check that GITHUB_TOKEN in secrets.json is right and not expired, and has the `repo` scope.",
    ),
    (
        r"Permission .* denied|Write access|\b403\b|read-only|not allowed to push",
        "give GITHUB_TOKEN write permission for this repository (scope `repo`; fine-grained: Contents, write).",
    ),
    (r"workflow", "give GITHUB_TOKEN the `workflow` scope: the branch holds workflow files."),
    (
        r"non-fast-forward|denyNonFastForwards|deletion prohibited|denyDeletes|cannot delete",
        "allow force pushes and deletions of kaggle-intents/* and kaggle-checkpoint-* in the host's branch rules.",
    ),
    (r"protected|GH006|hook declined|rule violations", "allow new branches named kaggle-* in the host's branch rules."),
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
        r"Could not resolve|unable to access|Connection|timed out|does not appear to be a git repository",
        "check the network and the repository's address, then run sync_outputs() again.",
    ),
)


def _refusal(answer: Completed, url: str, refs: Iterable[str]) -> GitPushError:
    message = (answer.errors.strip() or answer.output.strip() or "no reason given")[-2000:]
    kind = RefusedByHostError if "[remote rejected]" in message else GitPushError
    return kind(
        f"Git push failed: {url} rejected {', '.join(refs)}:\n{message}",
        remedy=remedy_for(message, "read the host's answer above, fix its cause and run sync_outputs() again."),
    )


def _quoted(path: str) -> str:
    """Return a path as Git reads it from a list with one path per line."""
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def remedy_for(message: str, otherwise: str) -> str:
    """Return the remedy that fits the host's message; addresses and ref names in the message are ignored."""
    bare = re.sub(r"\w+://\S+|\S*kaggle-\S+|refs/\S+", "", message)
    return next((remedy for pattern, remedy in _CAUSES if re.search(pattern, bare, re.IGNORECASE)), otherwise)
