"""Claims on publishing to a Git host over HTTP: what it refuses, what its wire loses, and where the token is seen.

The host is `git_host_emulator.py`, the client is git itself; the DVC remote is a folder.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import re
import shutil
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from conftest import RUN, WEIGHTS, Stores, run_git, write_run
from git_host_emulator import GitHost, Kind, Right

from lib.errors import CredentialsError, GitPushError, InDoubt, RemoteError, RunError
from lib.process import MINUTE, Completed, run_command
from lib.remotes.clone import configure_git
from lib.remotes.credentials import Credentials
from lib.sync import Publication, Published, check, recover, rehearse, sync_outputs
from lib.sync import refs as refs_module

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of DVC's own

TOKEN = "ghp_canaryTokenOfTheHost0123456789abcdef"
WRONG = "ghp_canaryTokenThatNobodyGave987654321xyz"
NAME = "owner/name"
BRANCH = "kaggle-train-detection-exp001-20250102-030405"
HEAD = f"refs/heads/{BRANCH}"
STAMP = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
FOR_EVER = 10**6
COMMIT_PUSH = f"POST .*git-receive-pack .*{HEAD}"
DECLARATION = r"POST .*git-receive-pack refs/intents/\w+$"


Limit = Callable[..., None]


# ── doing ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Hosted:
    """A host with one private repository, and a clone of it with a run that is not published yet."""

    host: GitHost
    stores: Stores
    said: list[str] = field(default_factory=list)

    @property
    def clone(self) -> Path:
        """The clone that publishes."""
        return self.stores.clone

    def publish(
        self, token: str | None = TOKEN, *, before: Mapping[str, Callable[[], object]] | None = None
    ) -> Published:
        """Publish the run; of `before`, each is done right when the publication says that it comes to that phase."""

        def hear(text: object) -> None:
            self._hear(text)
            (before or {}).get(str(text).partition(":")[0], lambda: None)()

        run = Publication(self.clone, BRANCH, "Training of exp001\n", RUN, WEIGHTS, STAMP)
        return sync_outputs(run, Credentials(token, source="secrets.json"), say=hear)

    def recover(self) -> int:
        """Settle everything that was left."""
        return recover(self.clone, Credentials(TOKEN), older_than=0, say=self._hear)

    def _hear(self, text: object) -> None:
        self.said.append(str(text))


@pytest.fixture
def hosted(stores: Stores) -> Iterator[Hosted]:
    """Give both remotes, with the Git remote behind a host that knows one token with all rights."""
    with GitHost(stores.folder / "hosted") as host:
        host.add_repository(NAME, stores.origin)
        host.add_token(TOKEN)
        run_git("remote", "set-url", "origin", host.address(NAME), cwd=stores.clone)
        yield Hosted(host, stores)


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Limit:
    """Let no git command, or only those with a certain text in them, take longer than so many seconds."""

    def set_limit(seconds: float, text: str = "") -> None:
        def run_shortly(command: Any, **options: Any) -> Completed:
            assert 0 < options["timeout"] <= 10 * MINUTE  # each has one of its own
            if text in " ".join(map(str, command)):
                options["timeout"] = min(options["timeout"], seconds)
            return run_command(command, **options)

        monkeypatch.setattr(refs_module, "run_command", run_shortly)

    return set_limit


def environment_of(token: str, address: str) -> dict[str, str]:
    """Give the environment in which git speaks to the host with the token."""
    return {**os.environ, **Credentials(token).git_environment(address)}


# ── looking ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def forms(token: str) -> list[bytes]:
    """Give the forms in which a token could be found again."""
    sent = base64.b64encode(f"x-access-token:{token}".encode()).decode()
    return [text.encode() for text in (token, quote(token, safe=""), sent, json.dumps(token)[1:-1])]


def places_of(token: str, folder: Path) -> list[str]:
    """Give the files below a folder, and the Git objects of its repositories, that hold the token."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and any(form in path.read_bytes() for form in forms(token)):
            found.append(str(path))
        if path.name == "objects" and (path.parent / "HEAD").exists():  # they are packed: only Git can read them
            words = ["git", "cat-file", "--batch-all-objects", "--batch"]
            objects = subprocess.run(words, cwd=path.parent, check=True, capture_output=True).stdout
            found += [str(path)] * any(form in objects for form in forms(token))
    return found


def shows_token(error: BaseException, token: str = TOKEN) -> bool:
    """Whether an error, or any that led to it, tells the token."""
    text = "".join(traceback.format_exception(error)).encode()
    return any(form in text for form in forms(token))


def models(clone: Path) -> dict[str, bytes]:
    """Give the trained models of a clone."""
    return {name: (clone / name).read_bytes() for name in WEIGHTS}


def assert_untouched(hosted: Hosted, before: Mapping[str, bytes]) -> None:
    """Make sure that nothing of the run is anywhere but on this machine, and that there it is as it was."""
    assert hosted.stores.refs() == {}
    assert hosted.stores.objects() == {}
    assert models(hosted.clone) == before
    assert not list(hosted.clone.rglob("*.pt.dvc"))
    assert run_git("status", "--porcelain", cwd=hosted.clone) == "?? artifacts/"


def assert_published(hosted: Hosted) -> None:
    """Make sure that the branch stands alone on the host, and all it names, and nothing else, on the DVC remote."""
    assert list(hosted.stores.refs()) == [HEAD]
    named = run_git("grep", "-hoE", "md5: [0-9a-f]{32}$", BRANCH, cwd=hosted.stores.origin).splitlines()
    assert {path.replace("/", "")[-32:] for path in hosted.stores.objects()} == {line[5:] for line in named}
    assert len(named) == len(WEIGHTS)


def assert_refused(hosted: Hosted, token: str | None, *told: str) -> GitPushError:
    """Make sure that publishing fails with an error in which these patterns occur, and leaves nothing. Give it."""
    before = models(hosted.clone)
    with pytest.raises(GitPushError) as caught:
        hosted.publish(token)
    for pattern in told:
        assert re.search(pattern, str(caught.value)), str(caught.value)
    assert not shows_token(caught.value, token or TOKEN)
    assert_untouched(hosted, before)
    return caught.value


def publish_or_fail(hosted: Hosted) -> RunError | None:
    """Publish, or give the error, which must be one of the Git remote and tell no token."""
    try:
        hosted.publish()
    except (GitPushError, InDoubt) as error:
        assert not shows_token(error)  # noqa: PT017  there may be none
        return error
    return None


# ── publishing ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_is_published_over_http_with_a_token(hosted: Hosted) -> None:
    """One branch, every object, no intent; the second call changes nothing."""
    credentials = Credentials(TOKEN)
    assert configure_git(hosted.clone, credentials).endswith("(with GITHUB_TOKEN)")
    first = hosted.publish()
    assert_published(hosted)
    second = hosted.publish()
    assert (first.before, second.before, second.commit) == (False, True, first.commit)
    assert check(hosted.clone, credentials, older_than=0, say=str).is_healthy
    # the host asks for an account first: git tells nobody who does not
    assert {request.status for request in hosted.host.requests if request.has_token} == {200}


def test_a_shallow_clone_made_with_the_token_publishes(hosted: Hosted) -> None:
    """What the notebook makes on Kaggle: one commit, fetched with the token, HEAD detached."""
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
    run = Publication(clone, BRANCH, "Training of exp001\n", RUN, WEIGHTS, STAMP)
    sync_outputs(run, Credentials(TOKEN), say=str)
    assert_published(hosted)
    assert run_git("rev-list", "--count", BRANCH, cwd=hosted.stores.origin) == "3"


def test_large_pushes_in_chunks_and_long_questions_in_gzip_arrive(hosted: Hosted) -> None:
    """The host takes bodies in every way in which git sends them."""
    hosted.clone.joinpath(RUN, "test", "picture.jpg").write_bytes(os.urandom(200_000))
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
    """Its intent is read, its objects deleted and the intent removed, by what the host serves alone."""
    before = models(hosted.clone)
    with pytest.raises(RunError):  # neither the commit push nor undoing comes through
        hosted.publish(before={"Phase 4": partial(hosted.host.expire, TOKEN)})
    assert len(hosted.stores.intents()) == 1
    assert len(hosted.stores.objects()) == len(WEIGHTS)
    hosted.host.add_token(TOKEN)
    found = check(hosted.clone, Credentials(TOKEN), older_than=0, say=str).findings
    assert [finding.kind for finding in found] == ["expired"]
    assert hosted.recover() == 0
    assert hosted.stores.refs() == {}
    assert hosted.stores.objects() == {}
    assert models(hosted.clone) == before


def test_a_repository_that_was_renamed_on_its_host_is_published_to(hosted: Hosted) -> None:
    """Hosts redirect the old name to the new one."""
    hosted.host.add_repository("owner/better", hosted.stores.origin)
    hosted.host.renamed = {NAME: "owner/better"}
    hosted.publish()
    assert_published(hosted)
    assert hosted.host.count(f"POST /{NAME}.git") == 0


# ── where the token is seen ───────────────────────────────────────────────────────────────────────────────────────────

LOOK_AT_PROCESSES = """for process in /proc/[0-9]*; do
  tr '\\0' ' ' < $process/cmdline 2> /dev/null; echo
done >> {file}"""


def test_the_token_is_in_no_file_and_no_process_argument(hosted: Hosted) -> None:
    """The host's own hook looks at every process of the machine while git waits for it."""
    seen = hosted.stores.folder / "processes"
    hosted.stores.write_hook("pre-receive", LOOK_AT_PROCESSES.format(file=seen))
    configure_git(hosted.clone, Credentials(TOKEN))
    hosted.publish()
    hosted.recover()
    check(hosted.clone, Credentials(TOKEN), older_than=0, say=hosted.said.append)
    assert "push --atomic" in seen.read_text(encoding="utf-8", errors="replace")
    assert "remote-http origin" in seen.read_text(encoding="utf-8", errors="replace")
    assert hosted.host.saw_token
    # all that was said, the host's and the DVC remote, the clone with .git/config and the private mirror below it
    (hosted.stores.folder / "said").write_text("\n".join(hosted.said), encoding="utf-8")
    assert places_of(TOKEN, hosted.stores.folder) == []
    assert not set(os.environ.values()) & {form.decode() for form in forms(TOKEN)}


def test_a_token_somewhere_is_found(tmp_path: Path) -> None:
    """The search of the test before sees files, and what Git has packed."""
    run_git("init", "--quiet", "repository", cwd=tmp_path)
    repository = tmp_path / "repository"
    basic = forms(TOKEN)[2].decode()
    run_git("config", "http.extraHeader", f"Authorization: Basic {basic}", cwd=repository)
    run_git("commit", "--quiet", "--allow-empty", f"--message={TOKEN}", cwd=repository)
    found = {Path(place).name for place in places_of(TOKEN, tmp_path)}
    assert {"config", "objects"} <= found


def test_a_host_that_echoes_the_token_does_not_get_it_shown(hosted: Hosted) -> None:
    """What the host says is shown, but for the token in any of its forms."""
    sent = forms(TOKEN)[2].decode()
    hosted.stores.write_hook("pre-receive", f"echo 'who comes with {TOKEN} or Basic {sent}?' >&2; exit 1")
    error = assert_refused(hosted, TOKEN, r"who comes with \*\*\* or Basic \*\*\*\?")
    assert not shows_token(error)


def test_a_redirect_to_another_host_that_asks_for_the_token_does_not_get_it(hosted: Hosted) -> None:
    """The token is for the host of `origin` alone, also when that host sends git elsewhere."""
    with GitHost(hosted.stores.folder / "elsewhere") as other:
        other.add_repository(NAME, hosted.stores.origin)
        other.add_token(TOKEN)
        hosted.host.moved_to = other.url
        with pytest.raises(RemoteError):
            configure_git(hosted.clone, Credentials(TOKEN))
        assert_refused(hosted, TOKEN, "GITHUB_TOKEN")
        assert len(other.requests) >= 2
        assert not other.saw_token


# ── tokens that do not do ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_missing_token_is_told_before_anything_is_trained(hosted: Hosted) -> None:
    """It is named with the file that should hold it; the host is not even asked."""
    with pytest.raises(CredentialsError, match=r"secrets\.json has no GITHUB_TOKEN") as caught:
        configure_git(hosted.clone, Credentials(source="secrets.json"))
    assert "GITHUB_TOKEN (scope `repo`)" in caught.value.remedy
    assert hosted.host.requests == []


@pytest.mark.parametrize("token", [WRONG, None], ids=["wrong", "missing"])
@pytest.mark.parametrize("public", [False, True], ids=["private", "public"])
def test_without_a_right_token_nothing_is_published(hosted: Hosted, token: str | None, public: bool) -> None:
    """A public repository may be read without one, and is not written to either."""
    hosted.host.public = {NAME} if public else set()
    error = assert_refused(hosted, token, "could not read Username|Authentication failed")
    assert "GITHUB_TOKEN" in error.remedy
    assert "expired" in error.remedy
    assert {request.authorised for request in hosted.host.requests if "receive" in request.service} <= {False}


def test_a_wrong_token_is_told_before_anything_is_trained(hosted: Hosted) -> None:
    """Git's own answer and the two things to look at: the token and the network."""
    with pytest.raises(RemoteError, match="does not answer") as caught:
        configure_git(hosted.clone, Credentials(WRONG))
    assert "GITHUB_TOKEN is not expired and has the `repo` scope" in caught.value.remedy
    assert not shows_token(caught.value, WRONG)


def test_a_token_that_expires_while_training_is_told_and_another_one_publishes(hosted: Hosted) -> None:
    """The step that asked the host before the training had found it right."""
    configure_git(hosted.clone, Credentials(TOKEN))
    hosted.host.expire(TOKEN)
    assert "not expired" in assert_refused(hosted, TOKEN, "could not read Username|Authentication failed").remedy
    hosted.host.add_token(WRONG)
    hosted.publish(WRONG)
    assert_published(hosted)


def test_a_token_that_does_not_see_the_repository_is_told(hosted: Hosted) -> None:
    """The host says that there is no such repository: the token is what must be looked at."""
    hosted.host.add_token(TOKEN, repositories=["owner/another"])
    error = assert_refused(hosted, TOKEN, "[Rr]epository .*not found")
    assert "GITHUB_TOKEN" in error.remedy


@pytest.mark.parametrize(
    "denial", ["Permission to {repository}.git denied to {user}.", "Write access to repository not granted."]
)
def test_a_read_only_token_is_told(hosted: Hosted, denial: str) -> None:
    """It reads, so that only the first push finds out; that is before anything is uploaded."""
    hosted.host.denial = denial
    hosted.host.add_token(TOKEN, rights=["read"])
    configure_git(hosted.clone, Credentials(TOKEN))
    error = assert_refused(hosted, TOKEN, re.escape(denial.partition("{")[0]), r"\b403\b")
    assert "write permission for this repository" in error.remedy
    assert "Contents, write" in error.remedy
    assert not any("POST" in line and "receive-pack" in line for line in map(str, hosted.host.requests))


def commit_workflow(hosted: Hosted) -> None:
    """Let the main branch, from which runs are published, hold a workflow."""
    workflow = hosted.clone / ".github" / "workflows" / "ci.yml"
    workflow.parent.mkdir(parents=True)
    workflow.write_text("on: push\n", encoding="utf-8")
    run_git("add", ".github", cwd=hosted.clone)
    run_git("commit", "--quiet", "--message=workflow", cwd=hosted.clone)
    run_git("push", "--quiet", str(hosted.stores.origin), "HEAD:main", cwd=hosted.clone)


def test_a_token_without_the_workflow_scope_is_told(hosted: Hosted) -> None:
    """The intent goes through and the branch does not: what was uploaded is gone again."""
    commit_workflow(hosted)
    rights: list[Right] = ["read", "write"]
    hosted.host.add_token(TOKEN, rights=rights)
    error = assert_refused(hosted, TOKEN, r"without `workflow` scope", r"\.github/workflows/ci\.yml")
    assert "the `workflow` scope" in error.remedy
    hosted.host.add_token(TOKEN)
    hosted.publish()
    assert_published(hosted)


def test_a_rehearsal_finds_the_missing_workflow_scope(hosted: Hosted) -> None:
    """Its throw-away branch stands at the run's own commit, which holds the workflow; before anything costs time."""
    commit_workflow(hosted)
    hosted.host.add_token(TOKEN, rights=["read", "write"])
    found = rehearse(hosted.clone, Credentials(TOKEN), say=str)
    assert isinstance(found.git, GitPushError)
    assert "without `workflow` scope" in found.git.what
    assert "the `workflow` scope" in found.git.remedy
    assert hosted.stores.refs() == {}
    hosted.host.add_token(TOKEN)
    assert isinstance(rehearse(hosted.clone, Credentials(TOKEN), say=str).git, str)


def test_a_rehearsal_asks_no_ci_to_build_anything(hosted: Hosted) -> None:
    """The one commit that it makes says so; its branch stands at a commit that was there."""
    seen = hosted.stores.folder / "seen"
    hosted.stores.write_hook("post-receive", f'while read o n ref; do echo "$ref $n" >> {seen}; done')
    rehearse(hosted.clone, Credentials(TOKEN), say=str)
    commits = dict(line.split() for line in reversed(seen.read_text().splitlines()) if not line.endswith("0" * 40))
    (intent,) = [commit for ref, commit in commits.items() if ref.startswith("refs/intents/")]
    (branch,) = [commit for ref, commit in commits.items() if ref.startswith("refs/heads/")]
    assert "[skip ci]" in run_git("show", "--no-patch", "--format=%B", intent, cwd=hosted.stores.origin)
    assert branch == run_git("rev-parse", "HEAD", cwd=hosted.clone)


def test_without_workflows_the_scope_is_not_needed(hosted: Hosted) -> None:
    """A token with the scope `repo` alone is enough."""
    hosted.host.add_token(TOKEN, rights=["read", "write"])
    hosted.publish()
    assert_published(hosted)


# ── rules of the host ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("rule", ["GH006", "GH013"])
def test_protected_names_are_told_and_everything_is_undone(hosted: Hosted, rule: Any) -> None:
    """A rule for `kaggle-*` refuses the branch when everything is uploaded already."""
    hosted.host.protected, hosted.host.rule = ["refs/heads/kaggle-*"], rule
    error = assert_refused(hosted, TOKEN, rule, r"\[remote rejected\]", "no branch, no new object")
    assert "kaggle-* in the host's branch rules" in error.remedy
    hosted.host.protected = ["refs/heads/main"]
    hosted.publish()
    assert_published(hosted)


@pytest.mark.parametrize("reason", ["deny updating a hidden ref", "funny refname"])
def test_a_host_that_takes_branches_alone_gets_the_intent_as_one(hosted: Hosted, reason: Any) -> None:
    """It is said, and the intent's branch is gone when the publication is there."""
    hosted.host.other_refs = reason
    hosted.publish()
    assert_published(hosted)
    told = [line for line in hosted.said if "refuses refs/intents/" in line]
    assert len(told) == 1
    assert "refs/heads/kaggle-intents/" in told[0]
    assert hosted.host.count(f"{HEAD} refs/heads/kaggle-intents/|refs/heads/kaggle-intents/.* {HEAD}") == 1


def test_on_a_host_that_takes_branches_alone_a_failure_is_undone(hosted: Hosted) -> None:
    """Marking and deleting the intent's branch works as it does elsewhere."""
    hosted.host.other_refs = "funny refname"
    hosted.host.protected = ["refs/heads/kaggle-train-*"]
    assert "kaggle-*" in assert_refused(hosted, TOKEN, "GH013").remedy


def test_a_host_that_is_not_atomic_is_refused(hosted: Hosted) -> None:
    """Before anything is uploaded: branch and intent could not be moved together."""
    hosted.host.atomic = False
    error = assert_refused(hosted, TOKEN, "does not support --atomic")
    assert "atomic pushes" in error.remedy
    assert hosted.host.count("POST .*git-receive-pack") == 0


# ── what the wire loses ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["lost answer", "cut answer"])
def test_a_lost_answer_to_the_commit_push_is_settled_by_asking(hosted: Hosted, kind: Kind) -> None:
    """The branch is there, so it is published, also where the client has sent the push once more and was refused."""
    hosted.host.add_fault(COMMIT_PUSH, kind)
    assert not hosted.publish().before
    assert_published(hosted)


@pytest.mark.parametrize("kind", ["lost answer", "cut answer"])
def test_a_lost_answer_to_the_intent_is_settled_by_asking(hosted: Hosted, kind: Kind) -> None:
    """The intent stands as it was written, and the publication goes on."""
    hosted.host.add_fault(DECLARATION, kind)
    hosted.publish()
    assert_published(hosted)


def test_a_host_that_dies_with_the_answer_leaves_doubt_that_the_next_call_settles(hosted: Hosted) -> None:
    """Published or not: nothing is deleted, and when the host is back it knows."""
    hosted.host.add_fault(COMMIT_PUSH, "lost answer")
    die = partial(hosted.host.add_fault, "git-upload-pack", "502", FOR_EVER)
    before = models(hosted.clone)
    with pytest.raises(InDoubt, match="does not let itself be asked") as caught:
        hosted.publish(before={"Phase 4": die})
    assert not shows_token(caught.value)
    assert "recover" in caught.value.remedy
    assert models(hosted.clone) == before
    hosted.host.clear_faults()
    assert hosted.publish().before
    assert_published(hosted)
    assert hosted.recover() == 0


MOMENTS = {
    "the first question": "GET .*git-upload-pack",
    "the intent": DECLARATION,
    "the commit push": COMMIT_PUSH,
}


@pytest.mark.parametrize("kind", ["502", "cut"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_fault_that_passes_publishes_all_or_nothing(hosted: Hosted, moment: str, kind: Kind) -> None:
    """Whatever goes wrong and wherever: an error and nothing left, or no error and all of it; then it works.

    A cut comes twice, since git's client tries again by itself where a connection ends.
    """
    before = models(hosted.clone)
    hosted.host.add_fault(MOMENTS[moment], kind, 2 if kind == "cut" else 1)
    if error := publish_or_fail(hosted):
        assert error.remedy
        assert_untouched(hosted, before)
    hosted.host.clear_faults()
    hosted.publish()
    assert_published(hosted)
    assert models(hosted.clone) == before


@pytest.mark.parametrize("kind", ["503", "cut"])
def test_a_host_that_stays_down_is_an_error_and_leaves_nothing(hosted: Hosted, kind: Kind) -> None:
    """From the first request on: nothing was begun."""
    hosted.host.add_fault("", kind, FOR_EVER)
    error = assert_refused(hosted, TOKEN, r"Git remote http://127\.0\.0\.1:\d+/owner/name\.git does not answer")
    assert ("network" if kind == "cut" else "has trouble") in error.remedy


@pytest.mark.parametrize("kind", ["502", "lost answer"])
@pytest.mark.parametrize("phase", ["Phase 2", "Phase 4"])
def test_a_host_that_goes_down_for_ever_is_settled_when_it_is_back(hosted: Hosted, phase: str, kind: Kind) -> None:
    """An error that is no success, every model in place, and one `recover` later nothing is left of it."""
    before = models(hosted.clone)
    with pytest.raises((GitPushError, InDoubt)) as caught:
        hosted.publish(before={phase: partial(hosted.host.add_fault, "", kind, FOR_EVER)})
    assert not shows_token(caught.value)
    assert models(hosted.clone) == before
    hosted.host.clear_faults()
    assert hosted.recover() == 0
    assert hosted.stores.refs() == {}
    assert hosted.stores.objects() == {}
    hosted.publish()
    assert_published(hosted)


# ── a host that is slow ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_host_that_answers_late_is_waited_for(hosted: Hosted) -> None:
    """A pause at each request is no reason to give up."""
    hosted.host.latency = 0.05
    hosted.publish()
    assert_published(hosted)


def test_a_host_that_says_nothing_is_an_error_and_not_a_wait_for_ever(hosted: Hosted, limit: Limit) -> None:
    """The limit of the command ends it, and git with it."""
    hosted.host.add_fault("", "silent", FOR_EVER)
    limit(0.5)
    began = time.monotonic()
    assert_refused(hosted, TOKEN, "gave no answer within")
    assert time.monotonic() - began < 10
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [line for line in commands if b"remote-http" in line and hosted.host.url.encode() in line]


@pytest.mark.parametrize("kind", ["silent", "late"])
def test_a_commit_push_without_an_answer_is_settled_by_asking(hosted: Hosted, limit: Limit, kind: Kind) -> None:
    """Only the push says nothing: whether it had happened, the host still tells."""
    before = models(hosted.clone)
    hosted.host.add_fault(COMMIT_PUSH, kind)
    limit(2, f":{HEAD}")
    if kind == "late":
        hosted.publish()
        assert_published(hosted)
    else:
        with pytest.raises(GitPushError, match="gave no answer within"):
            hosted.publish()
        assert_untouched(hosted, before)


def test_a_commit_push_that_arrives_after_its_undoing_is_refused(hosted: Hosted, limit: Limit) -> None:
    """The client has given up and cleaned up; the host then takes the push out of its queue: no half branch."""
    before = models(hosted.clone)
    hosted.host.add_fault(COMMIT_PUSH, "silent")
    hosted.host.silence = 3
    limit(1, f":{HEAD}")
    with pytest.raises(GitPushError, match="gave no answer within"):
        hosted.publish()
    late = next(request for request in hosted.host.requests if re.search(COMMIT_PUSH, str(request)))
    assert not late.authorised  # it is still in the queue
    deadline = time.monotonic() + 20
    while not late.status and time.monotonic() < deadline:
        time.sleep(0.05)
    assert late.authorised
    assert_untouched(hosted, before)


def test_a_silent_host_while_undoing_leaves_doubt(hosted: Hosted, limit: Limit) -> None:
    """The commit push says nothing and nothing else is answered: nothing is deleted, and no wait is for ever."""

    def fall_silent() -> None:
        hosted.host.add_fault("", "silent", FOR_EVER)
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
@pytest.mark.parametrize("times", [1, 2, FOR_EVER], ids=["once", "twice", "for ever"])
@pytest.mark.parametrize("kind", ["502", "cut", "cut answer", "lost answer"])
def test_a_fault_of_any_request_publishes_all_or_nothing(hosted: Hosted, kind: Kind, times: int) -> None:
    """The first request, then the second, … until a publication needs no more of them."""
    before = models(hosted.clone)
    for number in itertools.count():
        hosted.host.requests.clear()
        hosted.host.add_fault("", kind, times, after=number)
        error = publish_or_fail(hosted)
        was_hit = len(hosted.host.requests) > number
        hosted.host.clear_faults()
        assert hosted.recover() == 0
        assert models(hosted.clone) == before
        if hosted.stores.refs() or not error:
            assert_published(hosted)
        else:
            assert hosted.stores.objects() == {}
        if not was_hit:
            assert not error
            break
        # as before the run, for the next request's turn
        run_git("update-ref", "-d", HEAD, cwd=hosted.stores.origin)
        shutil.rmtree(hosted.stores.storage / "files", ignore_errors=True)


def test_a_redirect_to_another_host_does_not_carry_the_token_along(hosted: Hosted) -> None:
    """The other host serves the repository to everybody: what git then sends it, it must send without the token."""
    with GitHost(hosted.stores.folder / "elsewhere") as other:
        other.add_repository(NAME, hosted.stores.origin, public=True)
        hosted.host.moved_to = other.url
        with contextlib.suppress(RemoteError):
            configure_git(hosted.clone, Credentials(TOKEN))
        assert publish_or_fail(hosted)
        assert not other.saw_token
