"""`check` reports what is wrong with both remotes, and nothing else; it changes neither."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, RUN, WEIGHTS, Stores, run_git, write_run
from publications import BRANCH, CHECKPOINT, md5_of, publish, refuse

from lib.errors import GitPushError
from lib.remotes.credentials import Credentials
from lib.sync import Checked, check
from lib.sync.intent import Intent, Owner, StoredObject
from lib.sync.refs import Refs, RefUpdate
from lib.sync.stores.folder import FolderObjects


@pytest.fixture
def published(stores: Stores) -> Stores:
    """Publish the run, so that there is something to check."""
    publish(stores.clone)
    return stores


def look(stores: Stores) -> Checked:
    """Check from another clone, and assert that this changes nothing."""
    clone = stores.clone_again(f"look-{len(list(stores.folder.iterdir()))}")
    before = stores.refs(), stores.objects()
    checked = check(clone, older_than=0, say=str)
    assert (stores.refs(), stores.objects()) == before
    return checked


def kinds(checked: Checked) -> list[str]:
    """Return the kinds of the findings."""
    return sorted(finding.kind for finding in checked.findings)


def first_object(stores: Stores) -> Path:
    """Return the path of one published object."""
    return stores.storage / min(stores.objects())


def test_healthy_remotes_have_no_findings(published: Stores) -> None:
    """The remotes contain a publication and nothing else."""
    checked = look(published)
    assert checked.is_healthy
    assert checked.findings == ()
    assert (checked.objects, checked.intents) == (2, 0)


def test_a_missing_object_is_reported_with_its_branch_and_path(published: Stores) -> None:
    """`dvc pull` would fail on it."""
    first_object(published).unlink()
    checked = look(published)
    assert kinds(checked) == ["missing"]
    assert not checked.is_healthy
    assert f"refs/heads/{BRANCH}: {RUN}/train/weights/" in checked.findings[0].what


def test_an_object_of_another_size_is_damaged(published: Stores) -> None:
    """Half a file has the right name."""
    path = first_object(published)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:100])
    checked = look(published)
    assert kinds(checked) == ["damaged"]
    assert "100 bytes instead of 5000" in checked.findings[0].what


def test_an_object_of_other_content_is_damaged(published: Stores) -> None:
    """The size is right: the files of a folder are read."""
    path = first_object(published)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[::-1])
    checked = look(published)
    assert kinds(checked) == ["damaged"]
    assert "has other content (MD5 " in checked.findings[0].what


def test_an_object_that_nothing_names_is_reported(published: Stores) -> None:
    """It was stored by hand, or by another repository."""
    path = published.object_path("0123456789abcdef0123456789abcdef")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"stray")
    checked = look(published)
    assert kinds(checked) == ["unnamed"]
    assert "0123456789abcdef0123456789abcdef (5 bytes)" in checked.findings[0].what


def test_an_object_that_only_an_older_commit_names_is_named(published: Stores) -> None:
    """The objects of a publication are still named after a later commit has removed its `.dvc` files."""
    clone = published.clone_again("later", branch=BRANCH)
    run_git("rm", "--quiet", "-r", RUN, cwd=clone)
    run_git("commit", "--quiet", "--message=remove", cwd=clone)
    run_git("push", "--quiet", "origin", BRANCH, cwd=clone)
    assert look(published).findings == ()


def test_a_dead_publication_is_reported_with_the_command_that_recovers_it(published: Stores) -> None:
    """Its objects are not reported as unnamed: its intent names them."""
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
    """Push a branch that names a folder; return the path of the folder's listing on the DVC remote."""
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
    """The listing is there, one of the files that it names is not."""
    assert look(published).findings == ()
    (part,) = [item["md5"] for item in json.loads(listing.read_text()) if item["relpath"] == "a"]
    published.object_path(part).unlink()
    checked = look(published)
    assert kinds(checked) == ["missing"]
    assert f"data needs {part}" in checked.findings[0].what


def test_a_damaged_listing_is_reported_and_its_files_are_not(published: Stores, listing: Path) -> None:
    """The objects that the listing names are unknown; everything else is still checked."""
    listing.chmod(0o644)
    listing.write_text("[")
    model = md5_of((published.clone / WEIGHTS[0]).read_bytes())
    published.object_path(model).unlink()
    checked = look(published)
    assert kinds(checked) == ["damaged", "missing"]
    assert f"refs/heads/data: data needs {listing.parent.name}{listing.name}" in checked.findings[0].what


def run_elsewhere(stores: Stores, seed: int) -> None:
    """Move the checkpoint of a run on another machine, and make the publication of another run fail there."""
    clone = stores.folder / "elsewhere"
    if not clone.exists():
        stores.clone_again("elsewhere")

    write_run(clone, seed=seed)
    publish(clone, CHECKPOINT, CHECKPOINT)
    refuse(stores, "refs/heads/kaggle-train-refused")
    write_run(clone, seed=100 + seed)
    with pytest.raises(GitPushError):
        publish(clone, "kaggle-train-refused")
    stores.remove_hook("pre-receive")


@pytest.mark.slow
def test_runs_that_continue_during_a_check_cause_no_findings(
    published: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refs and objects that change between any two reads of the check are no damage."""
    run_elsewhere(published, 1)
    clone = published.clone_again()
    reads = 0
    moment = 1

    def run_in_between(kind: type[Any], name: str) -> None:
        real = getattr(kind, name)

        def wrapper(*given: Any) -> Any:
            nonlocal reads
            reads += 1
            if reads == moment:
                run_elsewhere(published, moment + 1)
            return real(*given)

        monkeypatch.setattr(kind, name, wrapper)

    for name in ("read_intents", "list_refs", "published_objects", "named_objects"):
        run_in_between(Refs, name)
    for name in ("survey", "look", "marks"):
        run_in_between(FolderObjects, name)
    while True:
        reads = 0
        checked = check(clone, older_than=0, say=str)
        assert checked.findings == (), f"before read {moment}"
        if reads < moment:
            break
        moment += 1
    assert moment > 8


@pytest.mark.parametrize("damage", [False, True])
def test_the_exit_status_of_the_command_depends_on_the_findings(published: Stores, damage: bool) -> None:
    """The status is 0 or 1; `--json` reports the same as the text."""
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
    report = json.loads(done["--json"].stdout)
    assert report["healthy"] is not damage
    assert [finding["kind"] for finding in report["findings"]] == ["missing"] * (2 if damage else 0)
    assert ("Nothing is wrong." in done[""].stdout) is not damage
    assert done[""].stdout.count("What to do:") == (2 if damage else 0)
