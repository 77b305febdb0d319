"""What is published does not depend on the repository's own rules: ignore files, attributes, filters, hooks."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from conftest import RUN, SMALL_FILES, WEIGHTS, Stores, run_git

from lib.sync import Publication, sync_outputs

BRANCH = "kaggle-train-detection-exp001-20250102-030405"


def publish(clone: Path, source: Path | None = None) -> None:
    """Publish the run in the clone, or with its content in `source`."""
    stamp = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
    sync_outputs(Publication(clone, BRANCH, "detection: exp001\n", RUN, WEIGHTS, stamp, source=source), say=str)


def commit_rules(stores: Stores, **texts: str) -> None:
    """Commit and push rules of the repository: {file name without its dot: text}."""
    for name, text in texts.items():
        file = stores.clone / f"{name.rpartition('/')[0]}" / f".{name.rpartition('/')[2]}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        run_git("add", "--force", file, cwd=stores.clone)
    run_git("commit", "--quiet", "--no-verify", "--message=rules", cwd=stores.clone)
    run_git("push", "--quiet", "origin", "HEAD:main", cwd=stores.clone)


def assert_same_in_a_strangers_clone(stores: Stores) -> None:
    """Clone the branch with Git and pull with DVC: every published file has the bytes that it has here."""
    from dvc.repo import Repo

    stranger = stores.clone_again("stranger", branch=BRANCH)
    with Repo(str(stranger)) as repo:
        repo.pull()
    for name in (*WEIGHTS, *SMALL_FILES):
        assert (stranger / name).read_bytes() == (stores.clone / name).read_bytes(), name


IGNORED = {
    "weights/": {"gitignore": "weights/\n"},
    "artifacts/": {"gitignore": "artifacts/\n"},
    "/artifacts": {"gitignore": "/artifacts\n"},
    "*.pt*": {"gitignore": "*.pt*\n"},
    "*.dvc": {"gitignore": "**/*.dvc\n"},
    "everything": {"gitignore": "*\n"},
    "without a line end": {"gitignore": "*.pt*"},
    "deeper": {"gitignore": "*.log\n", "artifacts/gitignore": "*\n", f"{RUN}/gitignore": "train\n"},
    "weights' own": {f"{RUN}/train/weights/gitignore": "*\n"},
    "dvc: *.pt": {"dvcignore": "*.pt\n"},
    "dvc: artifacts": {"dvcignore": "artifacts\n"},
    "dvc: deeper": {"artifacts/dvcignore": "*\n"},
    "both": {"gitignore": "artifacts/\n*.dvc\n", "dvcignore": "weights\n*.dvc\n"},
}
QUICK = ("artifacts/", "deeper", "both")
"""The rules that the default suite tries; CI tries the others among the slow tests."""


@pytest.mark.parametrize(
    "rules",
    [pytest.param(rules, id=name, marks=() if name in QUICK else pytest.mark.slow) for name, rules in IGNORED.items()],
)
def test_ignore_rules_hide_nothing_that_is_published(stores: Stores, rules: dict[str, str]) -> None:
    """Git's and DVC's rules, at the root and in deeper folders: a stranger's `dvc pull` brings the models."""
    commit_rules(stores, **rules)
    publish(stores.clone)
    assert_same_in_a_strangers_clone(stores)
    for name, text in rules.items():  # what the repository ignores elsewhere stays ignored
        path = f"{name.rpartition('/')[0]}/.{name.rpartition('/')[2]}".lstrip("/")
        assert run_git("show", f"{BRANCH}:{path}", cwd=stores.origin).startswith(text.strip())


def test_a_repository_that_hides_nothing_keeps_its_ignore_files(stores: Stores) -> None:
    """Only the published folder changes."""
    commit_rules(stores, gitignore="*.png\nbuild/\n", dvcignore="*.tmp\n")
    publish(stores.clone)
    changed = run_git("diff", "--name-only", f"{BRANCH}^", BRANCH, cwd=stores.origin).splitlines()
    assert all(name.startswith(f"{RUN}/") for name in changed)


HOSTILE = {
    "filter.lfs.clean": "echo pointer",
    "filter.lfs.smudge": "false",
    "filter.lfs.required": "true",
    "core.autocrlf": "true",
    "commit.gpgsign": "true",
    "gpg.program": "/bin/false",
}
"""A Git configuration as Git LFS, Windows and a signing user have it; nothing can be signed here."""


@pytest.mark.parametrize(
    "attributes", ["*.png filter=lfs diff=lfs merge=lfs -text\n", "* text=auto eol=crlf ident\n", "* filter=lfs\n"]
)
def test_filters_attributes_hooks_and_signatures_change_no_byte(stores: Stores, attributes: str) -> None:
    """Git LFS for images, line ends, a filter for every file, failing hooks, and commits that cannot be signed."""
    (stores.clone / SMALL_FILES[0]).write_bytes(b"lr: 1\r\n$Id$\nend")
    commit_rules(stores, gitattributes=attributes)
    for key, value in HOSTILE.items():
        run_git("config", key, value, cwd=stores.clone)
    for hook in ("pre-commit", "commit-msg", "pre-push", "post-index-change"):
        file = stores.clone / ".git/hooks" / hook
        file.parent.mkdir(exist_ok=True)
        file.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
        file.chmod(0o755)
    publish(stores.clone)
    stranger = stores.folder / "stranger"
    run_git("-c", "core.autocrlf=true", "clone", "-q", "-b", BRANCH, stores.origin, stranger, cwd=stores.folder)
    for name in SMALL_FILES:
        published = run_git("rev-parse", f"{BRANCH}:{name}", cwd=stores.origin)
        assert published == run_git("hash-object", "--no-filters", name, cwd=stores.clone), name
        assert (stranger / name).read_bytes() == (stores.clone / name).read_bytes(), name


def test_content_outside_the_clone_is_published_under_its_path(stores: Stores, tmp_path: Path) -> None:
    """The snapshot of a checkpoint; the clone's own files of that path are neither read nor changed."""
    snapshot = tmp_path / "snapshot"
    shutil.move(stores.clone / RUN, snapshot)
    (stores.clone / WEIGHTS[0]).parent.mkdir(parents=True)
    (stores.clone / WEIGHTS[0]).write_bytes(b"being written")
    publish(stores.clone, snapshot)
    assert (stores.clone / WEIGHTS[0]).read_bytes() == b"being written"
    shutil.rmtree(stores.clone / RUN)
    shutil.move(snapshot, stores.clone / RUN)
    assert_same_in_a_strangers_clone(stores)


def test_a_dvc_file_is_what_dvc_add_writes(stores: Stores) -> None:
    """The published text and that of DVC itself, byte for byte; the ignore file of the folder likewise."""
    from dvc.repo import Repo

    publish(stores.clone)
    with Repo(str(stores.clone)) as repo:
        repo.add([str(stores.clone / name) for name in WEIGHTS])
    for name in (*(f"{name}.dvc" for name in WEIGHTS), f"{RUN}/train/weights/.gitignore"):
        shown = run_git("show", f"{BRANCH}:{name}", cwd=stores.origin)
        assert shown.splitlines() == (stores.clone / name).read_text().splitlines()


def test_publishing_writes_nothing_into_the_work_tree(stores: Stores) -> None:
    """No `.dvc` file, no ignore line; HEAD and the index stay, too."""

    def look() -> dict[Path, bytes]:
        inside = (path for path in stores.clone.rglob("*") if path.is_file())
        return {path: path.read_bytes() for path in inside if not {".git", "tmp"} & set(path.parts[len(folder) :])}

    folder = stores.clone.parts
    before, index = look(), run_git("ls-files", "--stage", cwd=stores.clone)
    publish(stores.clone)
    assert look() == before
    assert run_git("ls-files", "--stage", cwd=stores.clone) == index
