"""`check` says what is wrong with both remotes, and nothing else; it touches neither."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from conftest import ROOT, RUN, WEIGHTS, Stores, run_git

from lib.credentials import Credentials
from lib.sync import Checked, Publication, check, sync_outputs
from lib.sync.intent import Intent, Owner, StoredObject
from lib.sync.refs import Move, Refs

BRANCH = "kaggle-train-detection-exp001-20250102-030405"


@pytest.fixture
def published(stores: Stores) -> Stores:
    """Publish the run, so that there is something to look at."""
    sync_outputs(
        Publication(stores.clone, BRANCH, "a run", RUN, WEIGHTS, datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)), say=str
    )
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
    refs.push(Move("refs/intents/dead", None, refs.write_intent(dead)))
    checked = look(published)
    assert kinds(checked) == ["expired"]
    assert "python -m lib recover" in checked.findings[0].remedy


def test_a_folder_is_checked_file_by_file(published: Stores) -> None:
    """Its listing is there, one of the files that it names is not."""
    from dvc.repo import Repo

    clone = published.clone_again("folder")
    (clone / "data").mkdir()
    for name in ("a", "b"):
        (clone / "data" / name).write_text(name)
    with Repo(str(clone)) as repo:
        (stage,) = repo.add([str(clone / "data")])
        repo.push()
        listing = stage.outs[0].hash_info.value
    run_git("add", "data.dvc", ".gitignore", cwd=clone)
    run_git("commit", "--quiet", "--message=data", cwd=clone)
    run_git("push", "--quiet", "origin", "HEAD:refs/heads/data", cwd=clone)
    assert look(published).findings == ()
    (part,) = [item["md5"] for item in json.loads(published.object_path(listing).read_text()) if item["relpath"] == "a"]
    published.object_path(part).unlink()
    checked = look(published)
    assert kinds(checked) == ["missing"]
    assert f"data needs {part}" in checked.findings[0].what


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
