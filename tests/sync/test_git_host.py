"""Claims on publishing to a Git host over HTTP: refusals, lost answers, and where the token appears.

The host is `git_host_emulator.py`, the client is git itself; the DVC remote is a folder.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from conftest import RUN, WEIGHTS, Stores, eventually, run_git, write_run
from git_host_emulator import GitHost, Kind, Right
from publications import (
    BRANCH,
    CHECKPOINT,
    checkpoints,
    lock_of,
    models_of,
    nothing_changes,
    publish,
    publish_checkpoint,
)

from lib.errors import CredentialsError, GitPushError, InDoubt, RemoteError, RunError
from lib.process import MINUTE, Completed, run_command
from lib.remotes import repository as repository_module
from lib.remotes.clone import configure_git
from lib.remotes.credentials import Credentials
from lib.sync import CheckpointPublisher, Published, Refs, RunLock, check, open_remotes, recover, rehearse

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of DVC's own

TOKEN = "ghp_canaryTokenOfTheHost0123456789abcdef"
WRONG = "ghp_canaryTokenThatNobodyGave987654321xyz"
NAME = "owner/name"
HEAD = f"refs/heads/{BRANCH}"
FOR_EVER = 10**6
PAUSES = (0.01, 0.01, 0.01)
READ = 3  # requests of one `git ls-remote` with a token, as the commit push begins with one
COMMIT_PUSH = f"POST .*git-receive-pack .*{HEAD}"
DECLARATION = r"POST .*git-receive-pack refs/runs/\S+$"


Limit = Callable[..., None]


# ── steps ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Hosted:
    """A host with one private repository, and a clone of it with an unpublished run."""

    host: GitHost
    stores: Stores
    messages: list[str] = field(default_factory=list)

    @property
    def clone(self) -> Path:
        """The clone that publishes."""
        return self.stores.clone

    def publish(
        self, token: str | None = TOKEN, *, before: Mapping[str, Callable[[], object]] | None = None
    ) -> Published:
        """Publish the run; call each function of `before` when the publication announces that phase."""

        def receive(text: str) -> None:
            self.messages.append(text)
            (before or {}).get(text.partition(":")[0], lambda: None)()

        return publish(self.clone, credentials=Credentials(token, source="secrets.json"), say=receive)

    def recover(self) -> int:
        """Recover every publication."""
        return recover(self.clone, Credentials(TOKEN), patience=0, say=self.messages.append)


@pytest.fixture
def hosted(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosted]:
    """Yield both remotes, with the Git remote on a host that accepts one token with all rights."""
    monkeypatch.setattr(repository_module, "PAUSES", PAUSES)
    with GitHost(stores.folder / "hosted") as host:
        host.add_repository(NAME, stores.origin)
        host.add_token(TOKEN)
        run_git("remote", "set-url", "origin", host.address(NAME), cwd=stores.clone)
        yield Hosted(host, stores)


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Limit:
    """Return a function that limits the seconds of every git command, or of those that contain a text."""

    def set_limit(seconds: float, text: str = "") -> None:
        def run_shortly(command: Any, **options: Any) -> Completed:
            assert 0 < options["timeout"] <= 10 * MINUTE  # every command has a limit of its own
            if text in " ".join(map(str, command)):
                options["timeout"] = min(options["timeout"], seconds)
            return run_command(command, **options)

        monkeypatch.setattr(repository_module, "run_command", run_shortly)

    return set_limit


def environment_of(token: str, address: str) -> dict[str, str]:
    """Return the environment with which git uses the token for the host."""
    return {**os.environ, **Credentials(token).git_environment(address)}


# ── checks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def forms(token: str) -> list[bytes]:
    """Return the forms in which a token could appear."""
    sent = base64.b64encode(f"x-access-token:{token}".encode()).decode()
    return [text.encode() for text in (token, quote(token, safe=""), sent, json.dumps(token)[1:-1])]


def places_of(token: str, folder: Path) -> list[str]:
    """Return the files below a folder, and its folders of Git objects, that contain the token."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and any(form in path.read_bytes() for form in forms(token)):
            found.append(str(path))
        if path.name == "objects" and (path.parent / "HEAD").exists():  # objects are compressed: only Git can read them
            words = ["git", "cat-file", "--batch-all-objects", "--batch"]
            objects = subprocess.run(words, cwd=path.parent, check=True, capture_output=True).stdout
            found += [str(path)] * any(form in objects for form in forms(token))
    return found


def shows_token(error: BaseException, token: str = TOKEN) -> bool:
    """Return whether an error, or one that led to it, contains the token."""
    text = "".join(traceback.format_exception(error)).encode()
    return any(form in text for form in forms(token))


def assert_untouched(hosted: Hosted, before: Mapping[str, bytes]) -> None:
    """Check that both remotes are empty, and that the clone is as it was before."""
    assert hosted.stores.refs() == {}
    assert hosted.stores.objects() == {}
    assert models_of(hosted.clone) == before
    assert not list(hosted.clone.rglob("*.pt.dvc"))
    assert run_git("status", "--porcelain", cwd=hosted.clone) == "?? artifacts/"


def assert_published(hosted: Hosted) -> None:
    """Check that the branch is the only ref on the host, and that the DVC remote contains exactly its objects."""
    assert list(hosted.stores.refs()) == [HEAD]
    named = run_git("grep", "-hoE", "md5: [0-9a-f]{32}$", BRANCH, cwd=hosted.stores.origin).splitlines()
    assert {path.replace("/", "")[-32:] for path in hosted.stores.objects()} == {line[5:] for line in named}
    assert len(named) == len(WEIGHTS)


def assert_refused(hosted: Hosted, token: str | None, *patterns: str) -> GitPushError:
    """Check that publishing fails with an error that matches these patterns, and leaves nothing; return the error."""
    before = models_of(hosted.clone)
    with pytest.raises(GitPushError) as caught:
        hosted.publish(token)
    for pattern in patterns:
        assert re.search(pattern, str(caught.value)), str(caught.value)
    assert not shows_token(caught.value, token or TOKEN)
    assert_untouched(hosted, before)
    return caught.value


def publish_or_fail(hosted: Hosted) -> RunError | None:
    """Publish; return the error, if any, which must be one of the Git remote and must not contain the token."""
    try:
        hosted.publish()
    except (GitPushError, InDoubt) as error:
        assert not shows_token(error)  # noqa: PT017  an error is not required
        return error
    return None


# ── publishing ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_is_published_over_http_with_a_token(hosted: Hosted) -> None:
    """The result is one branch, every object and no other ref; the second call changes nothing."""
    credentials = Credentials(TOKEN)
    assert configure_git(hosted.clone, credentials).endswith("(with GITHUB_TOKEN)")
    first = hosted.publish()
    assert_published(hosted)
    second = hosted.publish()
    assert (first.before, second.before, second.commit) == (False, True, first.commit)
    assert check(hosted.clone, credentials).is_healthy
    # the host asks for credentials first: git sends none unasked
    assert {request.status for request in hosted.host.requests if request.has_token} == {200}


def test_a_shallow_clone_made_with_the_token_publishes(hosted: Hosted) -> None:
    """The notebook on Kaggle makes such a clone: one commit, fetched with the token, with a detached HEAD."""
    address = hosted.host.address(NAME)
    clone = hosted.stores.folder / "shallow"
    run_git("commit", "--quiet", "--allow-empty", "--message=more", cwd=hosted.clone)
    run_git("push", "--quiet", str(hosted.stores.origin), "HEAD:main", cwd=hosted.clone)
    run_git("init", "--quiet", clone, cwd=hosted.stores.folder)
    run_git("remote", "add", "origin", address, cwd=clone)
    words = ["git", "fetch", "--quiet", "--depth=1", "origin", run_git("rev-parse", "HEAD", cwd=hosted.clone)]
    subprocess.run(words, cwd=clone, env=environment_of(TOKEN, address), check=True)
    run_git("checkout", "--quiet", "--detach", "FETCH_HEAD", cwd=clone)
    write_run(clone)
    publish(clone, credentials=Credentials(TOKEN))
    assert_published(hosted)
    assert run_git("rev-list", "--count", BRANCH, cwd=hosted.stores.origin) == "3"


def test_chunked_pushes_and_compressed_requests_arrive(hosted: Hosted) -> None:
    """The host accepts every encoding in which git sends bodies."""
    hosted.clone.joinpath(RUN, "test", "image.jpg").write_bytes(os.urandom(200_000))
    run_git("config", "http.postBuffer", "65536", cwd=hosted.clone)
    hosted.publish()
    assert_published(hosted)
    for number in range(40):
        run_git("commit", "--quiet", "--allow-empty", f"--message={number}", cwd=hosted.clone)
        run_git("push", "--quiet", str(hosted.stores.origin), f"HEAD:refs/heads/line-{number}", cwd=hosted.clone)
    address, again = hosted.host.address(NAME), hosted.stores.folder / "again"
    subprocess.run(
        ["git", "clone", "--quiet", "--no-single-branch", address, again],
        env=environment_of(TOKEN, address),
        check=True,
    )
    assert len(run_git("branch", "--remotes", cwd=again).splitlines()) == 43  # with main, HEAD and the publication
    assert {request.encoding for request in hosted.host.requests} >= {"", "chunked", "gzip"}


def test_a_dead_publication_is_recovered_over_http(hosted: Hosted) -> None:
    """The run's ref is read from the host, the objects that it declares are deleted, and so is the ref."""
    before = models_of(hosted.clone)
    with pytest.raises(RunError):  # neither the commit push nor the rollback reaches the host
        hosted.publish(before={"Phase 4": partial(hosted.host.expire, TOKEN)})
    assert len(hosted.stores.runs()) == 1
    assert len(hosted.stores.objects()) == len(WEIGHTS)
    hosted.host.add_token(TOKEN)
    found = check(hosted.clone, Credentials(TOKEN)).findings
    assert [finding.kind for finding in found] == ["unfinished"]
    assert hosted.recover() == 0
    assert hosted.stores.refs() == {}
    assert hosted.stores.objects() == {}
    assert models_of(hosted.clone) == before


def test_a_run_is_published_to_a_renamed_repository(hosted: Hosted) -> None:
    """Hosts redirect the old name to the new one."""
    hosted.host.add_repository("owner/better", hosted.stores.origin)
    hosted.host.renamed = {NAME: "owner/better"}
    hosted.publish()
    assert_published(hosted)
    assert hosted.host.count(f"POST /{NAME}.git") == 0


# ── where the token appears ───────────────────────────────────────────────────────────────────────────────────────────

LOOK_AT_PROCESSES = """for process in /proc/[0-9]*; do
  tr '\\0' ' ' < $process/cmdline 2> /dev/null; echo
done >> {file}"""


def test_the_token_is_in_no_file_and_no_process_argument(hosted: Hosted) -> None:
    """The host's hook reads the arguments of every process of the machine while git waits for it."""
    seen = hosted.stores.folder / "processes"
    hosted.stores.write_hook("pre-receive", LOOK_AT_PROCESSES.format(file=seen))
    configure_git(hosted.clone, Credentials(TOKEN))
    hosted.publish()
    hosted.recover()
    check(hosted.clone, Credentials(TOKEN))
    assert "push --atomic" in seen.read_text(encoding="utf-8", errors="replace")
    assert "remote-http origin" in seen.read_text(encoding="utf-8", errors="replace")
    assert hosted.host.saw_token
    # all messages, both remotes, and the clone with .git/config and the private mirror
    (hosted.stores.folder / "messages").write_text("\n".join(hosted.messages), encoding="utf-8")
    assert places_of(TOKEN, hosted.stores.folder) == []
    assert not set(os.environ.values()) & {form.decode() for form in forms(TOKEN)}


def test_the_search_finds_a_token(tmp_path: Path) -> None:
    """The search of the test above covers files and Git's compressed objects."""
    run_git("init", "--quiet", "repository", cwd=tmp_path)
    repository = tmp_path / "repository"
    basic = forms(TOKEN)[2].decode()
    run_git("config", "http.extraHeader", f"Authorization: Basic {basic}", cwd=repository)
    run_git("commit", "--quiet", "--allow-empty", f"--message={TOKEN}", cwd=repository)
    found = {Path(place).name for place in places_of(TOKEN, tmp_path)}
    assert {"config", "objects"} <= found


def test_a_token_that_the_host_echoes_is_not_shown(hosted: Hosted) -> None:
    """The host's message is shown without the token in any of its forms."""
    sent = forms(TOKEN)[2].decode()
    hosted.stores.write_hook("pre-receive", f"echo 'token {TOKEN} or Basic {sent} refused' >&2; exit 1")
    error = assert_refused(hosted, TOKEN, r"token \*\*\* or Basic \*\*\* refused")
    assert not shows_token(error)


def test_a_redirect_to_another_host_that_asks_for_the_token_does_not_get_it(hosted: Hosted) -> None:
    """The token is for the host of `origin` only, even if that host redirects git to another one."""
    with GitHost(hosted.stores.folder / "elsewhere") as other:
        other.add_repository(NAME, hosted.stores.origin)
        other.add_token(TOKEN)
        hosted.host.moved_to = other.url
        with pytest.raises(RemoteError):
            configure_git(hosted.clone, Credentials(TOKEN))
        assert_refused(hosted, TOKEN, "GITHUB_TOKEN")
        assert len(other.requests) >= 2
        assert not other.saw_token


# ── tokens without the needed rights ──────────────────────────────────────────────────────────────────────────────────


def test_a_missing_token_is_reported_before_the_training(hosted: Hosted) -> None:
    """The error names the file that should contain the token; the host receives no request."""
    with pytest.raises(CredentialsError, match=r"secrets\.json has no GITHUB_TOKEN") as caught:
        configure_git(hosted.clone, Credentials(source="secrets.json"))
    assert "GITHUB_TOKEN (scope `repo`)" in caught.value.remedy
    assert hosted.host.requests == []


@pytest.mark.parametrize("token", [WRONG, None], ids=["wrong", "missing"])
@pytest.mark.parametrize("public", [False, True], ids=["private", "public"])
def test_without_a_valid_token_nothing_is_published(hosted: Hosted, token: str | None, public: bool) -> None:
    """A public repository can be read without a token, but not written to."""
    hosted.host.public = {NAME} if public else set()
    error = assert_refused(hosted, token, "could not read Username|Authentication failed")
    assert "GITHUB_TOKEN" in error.remedy
    assert "expired" in error.remedy
    assert {request.authorised for request in hosted.host.requests if "receive" in request.service} <= {False}


def test_a_wrong_token_is_reported_before_the_training(hosted: Hosted) -> None:
    """The error contains Git's own answer and what to check."""
    with pytest.raises(RemoteError, match="the host rejects the token") as caught:
        configure_git(hosted.clone, Credentials(WRONG))
    assert "GITHUB_TOKEN in secrets.json is right and not expired" in caught.value.remedy
    assert not shows_token(caught.value, WRONG)


def test_a_token_that_expires_during_the_training_is_reported_and_a_new_one_publishes(hosted: Hosted) -> None:
    """The check before the training has accepted the token."""
    configure_git(hosted.clone, Credentials(TOKEN))
    hosted.host.expire(TOKEN)
    assert "not expired" in assert_refused(hosted, TOKEN, "could not read Username|Authentication failed").remedy
    hosted.host.add_token(WRONG)
    hosted.publish(WRONG)
    assert_published(hosted)


def test_a_token_without_access_to_the_repository_is_reported(hosted: Hosted) -> None:
    """The host answers that there is no such repository; the remedy names the token."""
    hosted.host.add_token(TOKEN, repositories=["owner/another"])
    error = assert_refused(hosted, TOKEN, "[Rr]epository .*not found")
    assert "GITHUB_TOKEN" in error.remedy


@pytest.mark.parametrize(
    "denial", ["Permission to {repository}.git denied to {user}.", "Write access to repository not granted."]
)
def test_a_read_only_token_is_reported(hosted: Hosted, denial: str) -> None:
    """Only the first push fails, but this is before any upload."""
    hosted.host.denial = denial
    hosted.host.add_token(TOKEN, rights=["read"])
    configure_git(hosted.clone, Credentials(TOKEN))
    error = assert_refused(hosted, TOKEN, re.escape(denial.partition("{")[0]), r"\b403\b")
    assert "write permission for this repository" in error.remedy
    assert "Contents, write" in error.remedy
    assert not any("POST" in line and "receive-pack" in line for line in map(str, hosted.host.requests))


def commit_workflow(hosted: Hosted) -> None:
    """Commit a workflow to the main branch, from which runs are published."""
    workflow = hosted.clone / ".github" / "workflows" / "ci.yml"
    workflow.parent.mkdir(parents=True)
    workflow.write_text("on: push\n", encoding="utf-8")
    run_git("add", ".github", cwd=hosted.clone)
    run_git("commit", "--quiet", "--message=workflow", cwd=hosted.clone)
    run_git("push", "--quiet", str(hosted.stores.origin), "HEAD:main", cwd=hosted.clone)


def test_a_token_without_the_workflow_scope_is_reported(hosted: Hosted) -> None:
    """The host accepts the run's ref and rejects the branch: the uploads are rolled back."""
    commit_workflow(hosted)
    rights: list[Right] = ["read", "write"]
    hosted.host.add_token(TOKEN, rights=rights)
    error = assert_refused(hosted, TOKEN, r"without `workflow` scope", r"\.github/workflows/ci\.yml")
    assert "the `workflow` scope" in error.remedy
    hosted.host.add_token(TOKEN)
    hosted.publish()
    assert_published(hosted)


def test_a_rehearsal_finds_the_missing_workflow_scope(hosted: Hosted) -> None:
    """Its temporary branch points at the run's own commit, which contains the workflow."""
    commit_workflow(hosted)
    hosted.host.add_token(TOKEN, rights=["read", "write"])
    found = rehearse(hosted.clone, Credentials(TOKEN), say=str)
    assert isinstance(found.git, GitPushError)
    assert "without `workflow` scope" in found.git.what
    assert "the `workflow` scope" in found.git.remedy
    assert hosted.stores.refs() == {}
    hosted.host.add_token(TOKEN)
    assert isinstance(rehearse(hosted.clone, Credentials(TOKEN), say=str).git, str)


def test_a_rehearsal_triggers_no_ci(hosted: Hosted) -> None:
    """The message of every new commit contains [skip ci]."""
    seen = hosted.stores.folder / "seen"
    hosted.stores.write_hook("post-receive", f"while read old new ref; do git log -1 --format=%B $new >> {seen}; done")
    rehearse(hosted.clone, Credentials(TOKEN), say=str)
    messages = [line for line in seen.read_text().splitlines() if line]
    assert len(messages) > 4
    assert all("[skip ci]" in line for line in messages)


def test_without_workflows_the_scope_is_not_needed(hosted: Hosted) -> None:
    """A token with only the scope `repo` is enough."""
    hosted.host.add_token(TOKEN, rights=["read", "write"])
    hosted.publish()
    assert_published(hosted)


# ── rules of the host ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("rule", ["GH006", "GH013"])
def test_protected_names_are_reported_and_everything_is_rolled_back(hosted: Hosted, rule: Any) -> None:
    """A rule for `kaggle-*` rejects the branch when everything is uploaded already."""
    hosted.host.protected, hosted.host.rule = ["refs/heads/kaggle-*"], rule
    error = assert_refused(hosted, TOKEN, rule, r"\[remote rejected\]", "no branch, no new object")
    assert "kaggle-* in the host's branch rules" in error.remedy
    hosted.host.protected = ["refs/heads/main"]
    hosted.publish()
    assert_published(hosted)


@pytest.mark.parametrize("reason", ["deny updating a hidden ref", "funny refname"])
def test_a_host_that_accepts_only_branches_is_an_error(hosted: Hosted, reason: Any) -> None:
    """It is found before the training, and before any upload."""
    hosted.host.other_refs = reason
    error = rehearse(hosted.clone, Credentials(TOKEN), say=str).git
    assert isinstance(error, GitPushError)
    assert reason in error.what
    for remedy in (error.remedy, assert_refused(hosted, TOKEN, reason).remedy):
        assert "refs/asks/*, refs/stops/* and refs/kaggle/*, not only branches" in remedy


@pytest.mark.parametrize("pattern", ["refs/runs/*", "refs/asks/*", "refs/stops/*", "refs/kaggle/*"])
def test_a_rehearsal_finds_that_a_ref_of_the_protocol_is_refused(hosted: Hosted, pattern: str) -> None:
    """The error contains the host's own words, and the remedy names the refs."""
    hosted.host.protected = [pattern]
    found = rehearse(hosted.clone, Credentials(TOKEN), say=str)
    assert isinstance(found.git, GitPushError)
    assert re.search("Repository rule violations found for " + pattern[:-1], found.git.what)
    assert pattern in found.git.remedy
    assert isinstance(found.dvc, str)
    assert "writing was not tried" in found.dvc
    assert (hosted.stores.refs(), hosted.stores.objects()) == ({}, {})


def test_a_rehearsal_finds_that_branches_cannot_be_deleted(hosted: Hosted) -> None:
    """Its own branch stays; the next rehearsal deletes it when the host allows that."""
    run_git("config", "receive.denyDeletes", "true", cwd=hosted.stores.origin)
    found = rehearse(hosted.clone, Credentials(TOKEN), say=str)
    assert isinstance(found.git, GitPushError)
    assert "deletion prohibited" in found.git.what
    assert "allow deletions of kaggle-* branches" in found.git.remedy
    assert hosted.stores.objects() == {}
    left = [ref.partition("kaggle-")[2][:10] for ref in hosted.stores.refs()]
    assert left == ["checkpoint", "train-rehe"]
    run_git("config", "receive.denyDeletes", "false", cwd=hosted.stores.origin)
    assert isinstance(rehearse(hosted.clone, Credentials(TOKEN), say=str).git, str)
    assert hosted.stores.refs() == {}


def test_checkpoints_and_runs_need_no_forced_push_of_a_branch(hosted: Hosted) -> None:
    """The host refuses them (`receive.denyNonFastForwards`)."""
    run_git("config", "receive.denyNonFastForwards", "true", cwd=hosted.stores.origin)
    credentials = Credentials(TOKEN)
    assert isinstance(rehearse(hosted.clone, credentials, say=str).git, str)
    lock = RunLock(Refs(hosted.clone, credentials), "detection-exp001", say=str)
    with open_remotes(hosted.clone, credentials) as remotes:
        publisher = CheckpointPublisher(remotes, lock, str)
        for epoch in range(3):
            publish_checkpoint(publisher, hosted.clone, epoch)
        assert run_git("rev-list", "--count", f"main..{CHECKPOINT}", cwd=hosted.stores.origin) == "3"
        publish(hosted.clone, hold=lock, credentials=credentials)
    assert_published(hosted)


def test_a_question_that_nobody_has_asked_is_deleted_without_an_error(hosted: Hosted) -> None:
    """The first and the last push of a run delete it wherever it is; hosts report that as a warning."""
    lock = RunLock(Refs(hosted.clone, Credentials(TOKEN)), "detection-exp001", say=str)
    lock.take()
    lock.release()
    assert hosted.host.count("POST .*git-receive-pack .*refs/asks/detection-exp001") == 2
    assert hosted.stores.refs() == {}


@pytest.mark.parametrize(("words", "times"), [("no pushes on Fridays", len(PAUSES) + 1), ("GH013: violations", 1)])
def test_a_push_that_may_pass_is_repeated_before_it_is_an_error(hosted: Hosted, words: str, times: int) -> None:
    """A host may refuse for a moment; a refusal that stays ends the publication at once."""
    hosted.stores.write_hook("pre-receive", f"grep -q refs/heads/ || exit 0; echo '{words}' >&2; exit 1")
    assert_refused(hosted, TOKEN, words)
    assert hosted.host.count(COMMIT_PUSH) == times


@pytest.mark.parametrize("kind", ["rate limit", "503"])
def test_a_host_that_limits_requests_is_waited_for_before_the_training(hosted: Hosted, kind: Kind) -> None:
    """The check of step 4 does not end a session for one answer."""
    hosted.host.add_fault("", kind, 2)
    assert configure_git(hosted.clone, Credentials(TOKEN)).endswith("(with GITHUB_TOKEN)")


def test_a_host_without_atomic_pushes_is_an_error(hosted: Hosted) -> None:
    """Branch and run could not be updated together; this is found before any upload."""
    hosted.host.atomic = False
    error = assert_refused(hosted, TOKEN, "does not support --atomic")
    assert "atomic pushes" in error.remedy
    assert hosted.host.count("POST .*git-receive-pack") == 0


# ── repositories and clones ───────────────────────────────────────────────────────────────────────────────────────────

SETTINGS = {
    "commit.gpgSign": "true",
    "push.gpgSign": "true",
    "gpg.program": "/bin/false",
    "push.followTags": "true",
    "push.recurseSubmodules": "check",
    "fetch.recurseSubmodules": "true",
    "submodule.recurse": "true",
    "fetch.prune": "true",
}
HOOKS = ("pre-commit", "commit-msg", "pre-push", "post-index-change", "reference-transaction", "pre-auto-gc")


def add_submodule(clone: Path) -> None:
    """Commit a submodule whose own host is gone, at a commit that was never pushed there; the commit is not pushed."""
    module = clone.parent / "module"
    run_git("init", "--quiet", module, cwd=clone)
    run_git("commit", "--quiet", "--allow-empty", "--message=module", cwd=module)
    run_git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", module, "vendor", cwd=clone)
    run_git("commit", "--quiet", "--allow-empty", "--message=vendor", cwd=clone / "vendor")
    run_git("commit", "--quiet", "--all", "--message=submodule", cwd=clone)
    shutil.rmtree(module)


def test_submodules_signatures_and_hooks_of_a_clone_change_nothing(stores: Stores) -> None:
    """A rehearsal, a checkpoint, a second session that goes on from it, and the publication."""
    add_submodule(stores.clone)
    clones = [stores.clone_again(), stores.clone]
    for clone in clones:
        write_run(clone)
        for name, value in SETTINGS.items():
            run_git("config", name, value, cwd=clone)
        for name in HOOKS:
            hook = clone / ".git/hooks" / name
            hook.parent.mkdir(exist_ok=True)
            hook.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
            hook.chmod(0o755)
    with nothing_changes(stores):
        found = rehearse(stores.clone, say=str)
    assert (type(found.git), type(found.dvc)) == (str, str)
    for clone in clones:
        lock = lock_of(clone)
        with checkpoints(clone, lock) as publisher:
            publish_checkpoint(publisher, clone)
        if clone is clones[0]:
            lock.release()
    publish(clone, hold=lock)
    assert list(stores.refs()) == [HEAD]
    entries = run_git("ls-tree", BRANCH, cwd=stores.origin)
    assert "160000 commit" in entries


def test_a_repository_whose_head_names_no_branch_works(stores: Stores) -> None:
    """`git init --bare` names `master`, and nobody has pushed it."""
    run_git("symbolic-ref", "HEAD", "refs/heads/absent", cwd=stores.origin)
    found = rehearse(stores.clone, say=str)
    assert (type(found.git), type(found.dvc)) == (str, str)
    publish(stores.clone)
    assert list(stores.refs()) == [HEAD]
    assert check(stores.clone).findings == ()
    assert recover(stores.clone, patience=0, say=str) == 0


@pytest.mark.parametrize("action", [rehearse, recover, check, publish])
def test_a_repository_with_sha256_names_is_one_clear_error(stores: Stores, action: Callable[[Path], object]) -> None:
    """Nothing is tried in it."""
    origin, clone = stores.folder / "sha256.git", stores.folder / "sha256"
    for words in (["--bare", origin], [clone]):
        run_git("init", "--quiet", "--object-format=sha256", *words, cwd=stores.folder)
    run_git("remote", "add", "origin", origin, cwd=clone)
    shutil.copytree(stores.clone / ".dvc", clone / ".dvc")
    with pytest.raises(GitPushError, match="sha256 object names") as caught:
        action(clone)
    assert "--object-format=sha1" in caught.value.remedy


# ── lost answers ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["lost answer", "cut answer"])
def test_a_lost_answer_to_the_commit_push_is_resolved_by_reading_the_remote(hosted: Hosted, kind: Kind) -> None:
    """The branch is there, so that the run is published, even if the client has repeated the push and was rejected."""
    hosted.host.add_fault(COMMIT_PUSH, kind)
    assert not hosted.publish().before
    assert_published(hosted)


@pytest.mark.parametrize("kind", ["lost answer", "cut answer"])
def test_a_lost_answer_to_the_declaration_is_resolved_by_reading_the_remote(hosted: Hosted, kind: Kind) -> None:
    """The run's ref is there as it was written, and the publication continues."""
    hosted.host.add_fault(DECLARATION, kind)
    hosted.publish()
    assert_published(hosted)


def test_a_lost_answer_to_any_push_of_a_rehearsal_is_resolved_by_reading_the_remote(hosted: Hosted) -> None:
    """Also to the last one: the run's ref is gone, and no other session has taken it over."""
    lines: list[str] = []
    for number in range(6):
        hosted.host.requests.clear()
        hosted.host.add_fault("POST .*git-receive-pack", "lost answer", after=number)
        found = rehearse(hosted.clone, Credentials(TOKEN), say=lines.append)
        assert (type(found.git), type(found.dvc)) == (str, str), number
        assert (hosted.stores.refs(), hosted.stores.objects(), lines) == ({}, {}, [])
        hosted.host.clear_faults()
    assert hosted.host.count("POST .*git-receive-pack") == 5  # a push of more than 1 MiB begins with an empty request


def test_a_host_that_dies_before_its_answer_leaves_doubt_that_the_next_call_resolves(hosted: Hosted) -> None:
    """Nothing is deleted until the host answers again and shows whether the run is published."""
    hosted.host.add_fault(COMMIT_PUSH, "lost answer")
    die = partial(hosted.host.add_fault, "git-upload-pack", "502", FOR_EVER, after=READ)
    before = models_of(hosted.clone)
    with pytest.raises(InDoubt, match="can be neither read nor rolled back") as caught:
        hosted.publish(before={"Phase 4": die})
    assert not shows_token(caught.value)
    assert "recover" in caught.value.remedy
    assert models_of(hosted.clone) == before
    hosted.host.clear_faults()
    assert hosted.publish().before
    assert_published(hosted)
    assert hosted.recover() == 0


MOMENTS = {
    "the first request": "GET .*git-upload-pack",
    "the declaration": DECLARATION,
    "the commit push": COMMIT_PUSH,
}


@pytest.mark.parametrize("kind", ["502", "cut"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_transient_fault_publishes_all_or_nothing(hosted: Hosted, moment: str, kind: Kind) -> None:
    """The call ends with an error and nothing left, or without an error and everything published; a retry publishes.

    A cut is injected twice, since git's client repeats a request by itself when a connection ends.
    """
    before = models_of(hosted.clone)
    hosted.host.add_fault(MOMENTS[moment], kind, 2 if kind == "cut" else 1)
    if error := publish_or_fail(hosted):
        assert error.remedy
        assert_untouched(hosted, before)
    hosted.host.clear_faults()
    hosted.publish()
    assert_published(hosted)
    assert models_of(hosted.clone) == before


@pytest.mark.parametrize("kind", ["rate limit", "429", "502", "503"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_an_overloaded_host_is_waited_for(hosted: Hosted, moment: str, kind: Kind) -> None:
    """A finished training is not lost to one answer that would have been another a moment later."""
    hosted.host.add_fault(MOMENTS[moment], kind, 2)
    hosted.publish()
    assert_published(hosted)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_host_that_goes_on_limiting_requests_is_an_error(hosted: Hosted, moment: str) -> None:
    """The remedy is to wait, not another token: git does not show the text of a 403 to a push."""
    hosted.host.add_fault(MOMENTS[moment], "rate limit", FOR_EVER)
    error = assert_refused(hosted, TOKEN, r"\b403\b", "the Git host limits requests")
    assert error.remedy.startswith("start fewer sessions")


@pytest.mark.parametrize("kind", ["503", "cut"])
def test_a_host_that_stays_down_is_an_error_and_leaves_nothing(hosted: Hosted, kind: Kind) -> None:
    """The host fails from the first request on, before anything is changed."""
    hosted.host.add_fault("", kind, FOR_EVER)
    error = assert_refused(hosted, TOKEN, r"Git remote http://127\.0\.0\.1:\d+/owner/name\.git cannot be read")
    assert ("network" if kind == "cut" else "status page") in error.remedy


@pytest.mark.parametrize("kind", ["502", "lost answer"])
@pytest.mark.parametrize("phase", ["Phase 2", "Phase 4"])
def test_a_run_on_a_host_that_goes_down_is_recovered_when_the_host_is_back(
    hosted: Hosted, phase: str, kind: Kind
) -> None:
    """The call raises an error, every model is in place, and one `recover` deletes the rest."""
    before = models_of(hosted.clone)
    with pytest.raises((GitPushError, InDoubt)) as caught:
        hosted.publish(before={phase: partial(hosted.host.add_fault, "", kind, FOR_EVER)})
    assert not shows_token(caught.value)
    assert models_of(hosted.clone) == before
    hosted.host.clear_faults()
    assert hosted.recover() == 0
    assert hosted.stores.refs() == {}
    assert hosted.stores.objects() == {}
    hosted.publish()
    assert_published(hosted)


# ── a slow host ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_is_published_to_a_slow_host(hosted: Hosted) -> None:
    """A delay of each answer is not an error."""
    hosted.host.latency = 0.05
    hosted.publish()
    assert_published(hosted)


def test_a_host_that_never_answers_is_an_error(hosted: Hosted, limit: Limit) -> None:
    """The time limit ends the command, and git's subprocesses with it."""
    hosted.host.add_fault("", "silent", FOR_EVER)
    limit(0.5)
    began = time.monotonic()
    assert_refused(hosted, TOKEN, "gave no answer within")
    assert time.monotonic() - began < 10
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [line for line in commands if b"remote-http" in line and hosted.host.url.encode() in line]


@pytest.mark.parametrize("kind", ["silent", "late"])
def test_a_commit_push_without_an_answer_publishes_once(hosted: Hosted, limit: Limit, kind: Kind) -> None:
    """Whether it has happened is read from the host; if not, it is repeated."""
    hosted.host.add_fault(COMMIT_PUSH, kind)
    limit(2, f":{HEAD}")
    assert not hosted.publish().before
    assert_published(hosted)


def test_a_commit_push_that_arrives_after_its_rollback_is_rejected(
    hosted: Hosted, limit: Limit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client has given up and rolled back when the host processes the push: there is no branch."""
    before = models_of(hosted.clone)
    monkeypatch.setattr(repository_module, "PAUSES", ())
    hosted.host.add_fault(COMMIT_PUSH, "silent")
    hosted.host.silence = 3
    limit(1, f":{HEAD}")
    with pytest.raises(GitPushError, match="gave no answer within"):
        hosted.publish()
    late = next(request for request in hosted.host.requests if re.search(COMMIT_PUSH, str(request)))
    assert not late.authorised  # the host has not processed it yet
    eventually(lambda: late.status)
    assert late.authorised
    assert_untouched(hosted, before)


def test_a_host_that_falls_silent_during_the_rollback_leaves_doubt(hosted: Hosted, limit: Limit) -> None:
    """Neither the commit push nor any later request is answered: nothing is deleted, and every wait ends."""

    def fall_silent() -> None:
        hosted.host.add_fault("", "silent", FOR_EVER, after=READ)
        limit(0.5)

    with pytest.raises(InDoubt):
        hosted.publish(before={"Phase 4": fall_silent})
    assert len(hosted.stores.objects()) == len(WEIGHTS)
    hosted.host.clear_faults()
    limit(60)
    assert hosted.recover() == 0
    assert hosted.stores.objects() == {}
    hosted.publish()
    assert_published(hosted)


# ── every request ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize("for_ever", [False, True], ids=["for a moment", "for ever"])
@pytest.mark.parametrize(("kind", "times"), [("502", 1), ("cut", 2), ("cut answer", 2), ("lost answer", 1)])
def test_a_fault_of_any_request_publishes_all_or_nothing(
    hosted: Hosted, kind: Kind, times: int, *, for_ever: bool
) -> None:
    """The first request fails, then the second, … until a publication completes before its fault.

    A cut is injected twice, since git's client repeats a request by itself when a connection ends.
    """
    before = models_of(hosted.clone)
    for number in itertools.count():
        hosted.host.requests.clear()
        hosted.host.add_fault("", kind, FOR_EVER if for_ever else times, after=number)
        error = publish_or_fail(hosted)
        was_hit = len(hosted.host.requests) > number
        hosted.host.clear_faults()
        assert hosted.recover() == 0
        assert models_of(hosted.clone) == before
        if hosted.stores.refs() or not error:
            assert_published(hosted)
        else:
            assert hosted.stores.objects() == {}
        if not was_hit:
            assert not error
            break
        # reset the remotes for the next request
        run_git("update-ref", "-d", HEAD, cwd=hosted.stores.origin)
        shutil.rmtree(hosted.stores.storage / "files", ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_an_overloaded_host_is_waited_for_at_any_request(
    hosted: Hosted, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """One request of five is refused for a moment: a rehearsal, a run with checkpoints, and its publication succeed."""
    monkeypatch.setattr(repository_module, "PAUSES", (0.01,) * 20)
    kinds: list[Kind] = ["rate limit", "429", "500", "502", "503"]
    chance = random.Random(seed)
    credentials = Credentials(TOKEN)
    for number in sorted(chance.sample(range(300), 60)):
        hosted.host.add_fault("", chance.choice(kinds), after=number)
    assert isinstance(rehearse(hosted.clone, credentials, say=str).git, str)
    lock = RunLock(Refs(hosted.clone, credentials), "detection-exp001", say=str)
    with open_remotes(hosted.clone, credentials) as remotes:
        publisher = CheckpointPublisher(remotes, lock, str)
        for epoch in range(3):
            publish_checkpoint(publisher, hosted.clone, epoch)
        publish(hosted.clone, hold=lock, credentials=credentials)
    assert_published(hosted)
    assert sum(request.status not in (200, 401) for request in hosted.host.requests) > 5
    assert check(hosted.clone, credentials).findings == ()


def test_a_redirect_to_another_host_does_not_send_the_token_there(hosted: Hosted) -> None:
    """The other host serves the repository without a token; git's requests to it must not contain one."""
    with GitHost(hosted.stores.folder / "elsewhere") as other:
        other.add_repository(NAME, hosted.stores.origin, public=True)
        hosted.host.moved_to = other.url
        with contextlib.suppress(RemoteError):
            configure_git(hosted.clone, Credentials(TOKEN))
        assert publish_or_fail(hosted)
        assert not other.saw_token
