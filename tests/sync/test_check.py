"""`check` says what is wrong with both remotes, and nothing else; it touches neither."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, RUN, WEIGHTS, Stores, run_git, write_run

from lib.errors import GitPushError
from lib.remotes.credentials import Credentials
from lib.sync import Checked, Publication, check, sync_outputs
from lib.sync.intent import Intent, Owner, StoredObject
from lib.sync.refs import Refs, RefUpdate
from lib.sync.stores.folder import DirectoryObjects

BRANCH = "kaggle-train-detection-exp001-20250102-030405"
CHECKPOINT = "kaggle-checkpoint-detection-exp001"
STAMP = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def published(stores: Stores) -> Stores:
    """Publish the run, so that there is something to look at."""
    sync_outputs(Publication(stores.clone, BRANCH, "a run", RUN, WEIGHTS, STAMP), say=str)
    return stores


def look(stores: Stores) -> Checked:
    """Check from another clone, and see that nothing was changed by it."""
    clone = stores.clone_again(f"look-{len(list(stores.folder.iterdir()))}")
    before = stores.refs(), stores.objects()
    checked = check(clone, older_than=0, say=str)
    assert (stores.refs(), stores.objects()) == before
    return checked


def kinds(checked: Checked) -> list[str]:
    """Give the kinds of what was found."""
    return sorted(finding.kind for finding in checked.findings)


def first_object(stores: Stores) -> Path:
    """Give the path of one published object."""
    return stores.storage / min(stores.objects())


def test_healthy_remotes_have_no_findings(published: Stores) -> None:
    """A publication, and nothing else."""
    checked = look(published)
    assert checked.is_healthy
    assert checked.findings == ()
    assert (checked.objects, checked.intents) == (2, 0)


def test_a_missing_object_is_told_with_its_branch_and_path(published: Stores) -> None:
    """What `dvc pull` would stumble over."""
    first_object(published).unlink()
    checked = look(published)
    assert kinds(checked) == ["missing"]
    assert not checked.is_healthy
    assert f"refs/heads/{BRANCH}: {RUN}/train/weights/" in checked.findings[0].what


def test_an_object_of_another_size_is_damaged(published: Stores) -> None:
    """Half a file under the right name."""
    path = first_object(published)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:100])
    checked = look(published)
    assert kinds(checked) == ["damaged"]
    assert "100 bytes instead of 5000" in checked.findings[0].what


def test_an_object_of_other_content_is_damaged(published: Stores) -> None:
    """Of the right size: a folder is read through."""
    path = first_object(published)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[::-1])
    checked = look(published)
    assert kinds(checked) == ["damaged"]
    assert "has other content (MD5 " in checked.findings[0].what


def test_an_object_that_nothing_names_is_told(published: Stores) -> None:
    """Left by somebody's hand, or by another repository."""
    path = published.object_path("0123456789abcdef0123456789abcdef")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"stray")
    checked = look(published)
    assert kinds(checked) == ["unnamed"]
    assert "0123456789abcdef0123456789abcdef (5 bytes)" in checked.findings[0].what


def test_what_only_an_older_commit_names_is_named(published: Stores) -> None:
    """A commit on top of a publication that removes its pointers does not make its objects strays."""
    clone = published.clone_again("later", branch=BRANCH)
    run_git("rm", "--quiet", "-r", RUN, cwd=clone)
    run_git("commit", "--quiet", "--message=remove", cwd=clone)
    run_git("push", "--quiet", "origin", BRANCH, cwd=clone)
    assert look(published).findings == ()


def test_a_dead_publication_is_told_with_the_command_that_settles_it(published: Stores) -> None:
    """Its objects are not strays: they are its own until then."""
    refs = Refs(published.clone, Credentials())
    path = published.object_path("0123456789abcdef0123456789abcdef")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"stray")
    own = StoredObject("0123456789abcdef0123456789abcdef", 5)
    dead = Intent("dead", "uploading", "kaggle-train-x", "0" * 40, Owner("elsewhere", "1-1"), (own,))
    refs.push(RefUpdate("refs/intents/dead", None, refs.write_intent(dead)))
    checked = look(published)
    assert kinds(checked) == ["expired"]
    assert "python -m lib recover" in checked.findings[0].remedy


@pytest.fixture
def listing(published: Stores) -> Path:
    """Let a branch name a folder; gives the listing of its files on the DVC remote."""
    from dvc.repo import Repo

    clone = published.clone_again("folder")
    (clone / "data").mkdir()
    for name in ("a", "b"):
        (clone / "data" / name).write_text(name)
    with Repo(str(clone)) as repo:
        (stage,) = repo.add([str(clone / "data")])
        repo.push()
        oid = stage.outs[0].hash_info.value
    run_git("add", "data.dvc", ".gitignore", cwd=clone)
    run_git("commit", "--quiet", "--message=data", cwd=clone)
    run_git("push", "--quiet", "origin", "HEAD:refs/heads/data", cwd=clone)
    return published.object_path(oid)


def test_a_folder_is_checked_file_by_file(published: Stores, listing: Path) -> None:
    """Its listing is there, one of the files that it names is not."""
    assert look(published).findings == ()
    (part,) = [item["md5"] for item in json.loads(listing.read_text()) if item["relpath"] == "a"]
    published.object_path(part).unlink()
    checked = look(published)
    assert kinds(checked) == ["missing"]
    assert f"data needs {part}" in checked.findings[0].what


def test_a_damaged_listing_is_told_and_its_files_are_no_strays(published: Stores, listing: Path) -> None:
    """Nobody knows any more what it names; everything else is checked all the same."""
    listing.chmod(0o644)
    listing.write_text("[")
    model = hashlib.md5((published.clone / WEIGHTS[0]).read_bytes()).hexdigest()
    published.object_path(model).unlink()
    checked = look(published)
    assert kinds(checked) == ["damaged", "missing"]
    assert f"refs/heads/data: data needs {listing.parent.name}{listing.name}" in checked.findings[0].what


def living(stores: Stores, seed: int) -> None:
    """Let a run on another machine move its checkpoint, and another one fail to publish."""
    clone = stores.folder / "living"
    if not clone.exists():
        stores.clone_again("living")

    def publish(branch: str, content: int, *supersedes: str) -> None:
        write_run(clone, seed=content)
        sync_outputs(Publication(clone, branch, "a run", RUN, WEIGHTS, STAMP, supersedes=supersedes), say=str)

    publish(CHECKPOINT, seed, CHECKPOINT)
    stores.write_hook("pre-receive", "while read old new ref; do test $ref != refs/heads/kaggle-train-refused; done")
    with pytest.raises(GitPushError):
        publish("kaggle-train-refused", 100 + seed)
    stores.remove_hook("pre-receive")


@pytest.mark.slow
def test_runs_that_go_on_meanwhile_are_no_findings(published: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever they do between any two looks: what has moved, come or gone since is no damage."""
    living(published, 1)
    clone = published.clone_again()
    looks = 0
    moment = 1

    def look_in_between(kind: type[Any], name: str) -> None:
        real = getattr(kind, name)

        def passage(*given: Any) -> Any:
            nonlocal looks
            looks += 1
            if looks == moment:
                living(published, moment + 1)
            return real(*given)

        monkeypatch.setattr(kind, name, passage)

    for name in ("read_intents", "list_refs", "published_objects", "named_objects"):
        look_in_between(Refs, name)
    for name in ("survey", "look", "marks"):
        look_in_between(DirectoryObjects, name)
    while True:
        looks = 0
        checked = check(clone, older_than=0, say=str)
        assert checked.findings == (), f"before look {moment}"
        if looks < moment:
            break
        moment += 1
    assert moment > 8


@pytest.mark.parametrize("damage", [False, True])
def test_the_command_exits_by_what_it_finds(published: Stores, damage: bool) -> None:
    """0 and 1; `--json` says the same as the text."""
    if damage:
        shutil.rmtree(published.storage / "files")
    done = {
        word: subprocess.run(
            [sys.executable, "-m", "lib", "check", "--older-than", "0", *word.split()],
            cwd=published.clone, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        )
        for word in ("", "--json")
    }  # fmt: skip
    assert {one.returncode for one in done.values()} == {1 if damage else 0}
    told = json.loads(done["--json"].stdout)
    assert told["healthy"] is not damage
    assert [finding["kind"] for finding in told["findings"]] == ["missing"] * (2 if damage else 0)
    assert ("Nothing is wrong." in done[""].stdout) is not damage
    assert done[""].stdout.count("What to do:") == (2 if damage else 0)
