"""DVC alone decides where an object is: what `dvc pull` brings, our pull brings, and preflight and `check` accept."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from conftest import ROOT, Stores, assert_no_secret, run_git, write_run
from dvc.repo.open_repo import clean_repos
from publications import publish
from s3_emulator import S3Emulator

from lib.data.dataset import read_pointer
from lib.data.pull import pull_objects
from lib.errors import CredentialsError, DatasetError, RemoteError, SyncError
from lib.experiment.load import load_experiment
from lib.kaggle.notebook import source
from lib.remotes.clone import (
    configure_dvc,
    configure_git,
    find_git_remote,
    find_remotes,
    require_committed,
    set_up_copy,
)
from lib.remotes.credentials import Credentials
from lib.sync import check, recover, rehearse
from lib.sync.stores.places import find_missing

SMALL = load_experiment(ROOT / "experiments/000_det_sandbox.yaml")
DATA = SMALL.dataset


def dvc(*words: str | Path, cwd: Path) -> None:
    """Run a DVC command that must succeed."""
    subprocess.run([sys.executable, "-m", "dvc", *map(str, words)], cwd=cwd, check=True, capture_output=True)


def write_data(folder: Path) -> None:
    """Write a small dataset; only its files' names and bytes matter here."""
    folder.mkdir(parents=True)
    for name in ("data.yaml", "image.png"):
        (folder / name).write_text(f"{name}\n")


def write_config(clone: Path, text: str) -> None:
    """Replace the committed configuration of DVC."""
    (clone / ".dvc/config").write_text(f"[core]\n    remote = storage\n{text}", encoding="utf-8")


def section(name: str, **settings: object) -> str:
    """Return the section of a DVC remote."""
    lines = "".join(f"    {key} = {value}\n" for key, value in settings.items())
    return f"['remote \"{name}\"']\n{lines}"


def add(stores: Stores) -> None:
    """Track the dataset and push it."""
    write_data(stores.clone / DATA)
    dvc("add", DATA, cwd=stores.clone)
    dvc("push", cwd=stores.clone)


def plain(stores: Stores) -> Path:
    """Track the dataset with the DVC of today."""
    add(stores)
    return stores.storage


def legacy(stores: Stores) -> Path:
    """Track the dataset as DVC 2 does: no folder `files/md5`, and no `hash` in the `.dvc` file."""
    add(stores)
    for folder in (stores.storage / "files/md5").iterdir():
        folder.rename(stores.storage / folder.name)
    shutil.rmtree(stores.storage / "files")
    file = stores.clone / f"{DATA}.dvc"
    file.write_text(file.read_text().replace("  hash: md5\n", ""))
    return stores.storage


def own_remote(stores: Stores) -> Path:
    """Name another remote in the `.dvc` file."""
    place = stores.folder / "datasets"
    write_config(stores.clone, section("storage", url=stores.storage) + section("datasets", url=place))
    write_data(stores.clone / DATA)
    dvc("add", DATA, cwd=stores.clone)
    file = stores.clone / f"{DATA}.dvc"
    file.write_text(file.read_text() + "  remote: datasets\n")
    dvc("push", cwd=stores.clone)
    return place


def chained(stores: Stores) -> Path:
    """Name the default remote by another one's address."""
    base = section("base", url=stores.storage)
    write_config(stores.clone, base + section("storage", url="remote://base/models"))
    add(stores)
    return stores.storage / "models"


def relative(stores: Stores) -> Path:
    """Set the remote to a path relative to `.dvc`."""
    write_config(stores.clone, section("storage", url="../../storage"))
    add(stores)
    return stores.storage


def other_case(stores: Stores) -> Path:
    """Write the remote's name in capitals in one place."""
    write_config(stores.clone, section("storage", url=stores.storage))
    file = stores.clone / ".dvc/config"
    file.write_text(file.read_text().replace("remote = storage", "remote = Storage"))
    add(stores)
    return stores.storage


def users_own(stores: Stores) -> Path:
    """Keep the address in the user's configuration for all repositories."""
    write_config(stores.clone, "")
    file = Path(os.environ["DVC_GLOBAL_CONFIG_DIR"]) / "config"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(section("storage", url=stores.storage))
    add(stores)
    return stores.storage


def local(stores: Stores) -> Path:
    """Replace the committed address in `.dvc/config.local`, by a relative path."""
    write_config(stores.clone, section("storage", url="/nowhere"))
    (stores.clone / ".dvc/config.local").write_text(section("storage", url="../../storage"))
    add(stores)
    return stores.storage


def imported(stores: Stores) -> Path:
    """Import the dataset from another repository, which has a DVC remote of its own."""
    source, place = stores.folder / "source", stores.folder / "source-storage"
    run_git("init", "--quiet", source, cwd=stores.folder)
    dvc("init", cwd=source)
    dvc("remote", "add", "-d", "there", place, cwd=source)
    write_data(source / "set")
    dvc("add", "set", cwd=source)
    dvc("push", cwd=source)
    run_git("add", "--all", cwd=source)
    run_git("commit", "--quiet", "--message=set", cwd=source)
    (stores.clone / DATA).parent.mkdir(parents=True)
    dvc("import", source, "set", "-o", DATA, cwd=stores.clone)
    shutil.rmtree(source / ".dvc/cache")
    return place


def pipeline(stores: Stores) -> Path:
    """Make the dataset by a stage of `dvc.yaml`."""
    write_data(stores.clone / "raw")
    (stores.clone / DATA).parent.mkdir(parents=True)
    dvc("stage", "add", "--run", "-n", "make", "-d", "raw", "-o", DATA, f"cp -r raw {DATA}", cwd=stores.clone)
    dvc("push", cwd=stores.clone)
    return stores.storage


CASES: tuple[Callable[[Stores], Path], ...] = (
    plain, legacy, own_remote, chained, relative, other_case, users_own, local, imported, pipeline,
)  # fmt: skip


@pytest.fixture
def _own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path / "global"))
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))


@pytest.mark.usefixtures("_own_settings")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_what_dvc_pulls_is_found_and_pulled_and_what_it_does_not_is_reported(
    stores: Stores, case: Callable[[Stores], Path]
) -> None:
    """From a private copy, too; for a lost object the remedy is one that helps."""
    place = case(stores)
    run_git("add", "--all", cwd=stores.clone)
    run_git("commit", "--quiet", "--message=dataset", cwd=stores.clone)
    run_git("push", "--quiet", "origin", "HEAD:main", cwd=stores.clone)
    fresh = stores.clone_again()
    if case is local:
        shutil.copy(stores.clone / ".dvc/config.local", fresh / ".dvc")
    dvc("pull", DATA, cwd=fresh)
    shutil.rmtree(fresh / DATA)
    shutil.rmtree(fresh / ".dvc/cache")
    with set_up_copy(fresh, Credentials()) as (copy, scratch):
        pointers = {f"{DATA}.dvc": read_pointer(copy, SMALL).text}
        assert find_missing(copy, pointers, str) == {}
        assert not [found for found in check(copy).findings if found.is_wrong]
        assert rehearse(copy, say=str).room
        pull_objects(copy, scratch / "place", pointers, Credentials(), "Pulling")
        assert (scratch / "place" / DATA / "image.png").read_text() == "image.png\n"
        assert not (copy.parent / "storage").exists()
        lose(place, "image.png")
        ((what, remedy),) = find_missing(copy, pointers, str).values()
        assert what == "image.png is not on the DVC remote"
        assert ("it was imported" in remedy) == (case is imported)
        shutil.rmtree(place)
        shutil.rmtree(scratch / "dvc-cache")
        clean_repos()  # DVC keeps the clones of imports, with a cache of theirs, as long as the process lives
        for folder in (stores.storage, place):
            folder.mkdir(exist_ok=True)
        ((_, remedy),) = find_missing(copy, pointers, str).values()
        assert ("it was imported" in remedy) == (case is imported)
        assert f"dvc push {DATA}" in remedy or case is imported
        wrong = [found for found in check(copy).findings if found.is_wrong]
        assert ([found.remedy for found in wrong] == [remedy]) == (
            case is not pipeline
        )  # no branch names a `.dvc` file


def lose(storage: Path, *names: str) -> None:
    """Delete these files of the dataset from a folder of objects."""
    for name in names:
        (path,) = storage.rglob(hashlib.md5(f"{name}\n".encode()).hexdigest()[2:])
        path.unlink()


def test_what_an_attached_copy_has_is_not_missing(stores: Stores, tmp_path: Path) -> None:
    """The remote has the listing alone, the copy one of the files; the other one is named."""
    add(stores)
    copy = tmp_path / "copy"
    shutil.copytree(stores.storage, copy)
    lose(stores.storage, "data.yaml", "image.png")
    pointers = {f"{DATA}.dvc": read_pointer(stores.clone, SMALL).text}
    assert find_missing(stores.clone, pointers, str, [copy]) == {}
    lose(copy, "image.png")
    (missing,) = find_missing(stores.clone, pointers, str, [copy]).values()
    assert missing.what == "image.png is not on the DVC remote"
    (missing,) = find_missing(stores.clone, pointers, str).values()
    assert missing.what == "2 files are not on the DVC remote: data.yaml, image.png"


def test_files_on_s3_are_looked_for_each_time(stores: Stores) -> None:
    """What was pushed since the last look is found: no listing of the client's cache counts."""
    with S3Emulator() as s3:
        s3.make_bucket("bucket")
        s3.configure_clone(stores.clone, "bucket")
        add(stores)
        pointers = {f"{DATA}.dvc": read_pointer(stores.clone, SMALL).text}
        assert find_missing(stores.clone, pointers, str) == {}
        (key,) = [key for key, content in s3.files("bucket").items() if content == b"image.png\n"]
        s3.client().delete_object(Bucket="bucket", Key=key)
        (missing,) = find_missing(stores.clone, pointers, str).values()
        assert missing.what == "image.png is not on the DVC remote"
        s3.client().put_object(Bucket="bucket", Key=key, Body=b"image.png\n")
        assert find_missing(stores.clone, pointers, str) == {}


@pytest.mark.parametrize(
    ("url", "kind"), [("gdrive://folder", "gdrive"), ("s3://bucket/place", "s3"), ("/somewhere", "local")]
)
def test_a_chained_remote_is_of_the_kind_of_its_base(stores: Stores, url: str, kind: str) -> None:
    """The address `remote://base/models` does not show where it leads."""
    write_config(stores.clone, section("base", url=url) + section("storage", url="remote://base/models"))
    assert find_remotes(stores.clone) == [("storage", kind, f"{url}/models")]


def test_the_remotes_of_a_run_are_the_default_and_those_that_outputs_name(stores: Stores) -> None:
    """Not one that nothing names, cannot be opened, or whose `.dvc` file is damaged; of a dataset, only its own."""
    base = section("base", url="gdrive://folder") + section("unused", url="gdrive://other")
    own = section("storage", url=stores.storage) + section("Datasets", url="remote://base/sets")
    write_config(stores.clone, base + own + section("broken", url="azure://x"))
    for name, remote in ((DATA, "Datasets"), ("data/other", "broken"), ("third", "storage")):
        text = f"outs:\n- md5: {'a' * 32}\n  hash: md5\n  path: {Path(name).name}\n  remote: {remote}\n"
        (stores.clone / name).parent.mkdir(exist_ok=True)
        (stores.clone / f"{name}.dvc").write_text(text)
    (stores.clone / "damaged.dvc").write_text("outs: [")
    storage, datasets = ("storage", "local", str(stores.storage)), ("datasets", "gdrive", "gdrive://folder/sets")
    assert find_remotes(stores.clone) == find_remotes(stores.clone, DATA) == [storage, datasets]
    assert find_remotes(stores.clone, "third") == [storage]
    said = configure_dvc(stores.clone, stores.folder / "scratch", Credentials())
    assert said.splitlines() == [
        f"DVC remote: storage at {stores.storage}",
        "DVC remote: datasets at gdrive://folder/sets",
    ]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_refusal_of_s3_has_the_same_remedy_in_preflight_and_in_a_pull(stores: Stores, method: str) -> None:
    """Both name what S3 refuses, and no credential."""
    with S3Emulator() as s3:
        s3.make_bucket("bucket")
        s3.configure_clone(stores.clone, "bucket")
        add(stores)
        shutil.rmtree(stores.clone / ".dvc/cache")
        pointers = {f"{DATA}.dvc": read_pointer(stores.clone, SMALL).text}
        s3.add_fault(f"^{method} ", "denied", 1000)
        with pytest.raises(RemoteError) as asked:
            find_missing(stores.clone, pointers, str)
        with pytest.raises(RemoteError) as pulled:
            pull_objects(stores.clone, stores.folder / "place", pointers, Credentials(), "Pulling")
        for caught in (asked, pulled):
            assert "S3 refused" in caught.value.what
            assert "let these keys list the bucket" in caught.value.remedy


def commit(stores: Stores, config: str) -> None:
    """Commit this configuration of DVC, with an output of its own remote, and push it."""
    (stores.clone / ".dvc/config").write_text(config, encoding="utf-8")
    text = f"outs:\n- md5: {'a' * 32}\n  hash: md5\n  path: own\n  remote: datasets\n"
    (stores.clone / "own.dvc").write_text(text)
    run_git("add", "--all", cwd=stores.clone)
    run_git("commit", "--quiet", "--message=configured", cwd=stores.clone)
    run_git("push", "--quiet", "origin", "HEAD:main", cwd=stores.clone)


DEFAULT = "[core]\n    remote = storage\n"
STORAGE = section("storage", url="../../storage")
DATASETS = section("base", url="s3://bucket") + section("datasets", url="remote://base/sets")


@pytest.mark.usefixtures("_own_settings")
@pytest.mark.parametrize("level", ["local", "global"])
@pytest.mark.parametrize(
    ("committed", "elsewhere", "lacking"),
    [
        ("", DEFAULT + STORAGE + DATASETS, "core.remote, remote.storage.url, remote.datasets.url, remote.base.url"),
        (STORAGE + DATASETS, DEFAULT, "core.remote"),
        (DEFAULT + STORAGE, DATASETS, "remote.datasets.url, remote.base.url"),
        (DEFAULT + STORAGE + DATASETS, section("base", endpointurl="http://x"), "remote.base.endpointurl"),
        (DEFAULT + STORAGE + DATASETS, section("copy", url="/copy") + section("base", profile="me"), ""),
        (DEFAULT + STORAGE + DATASETS, "", ""),
    ],
    ids=["all", "default", "own remote", "endpoint", "what no run needs", "nothing"],
)
def test_an_address_that_the_commit_lacks_is_named_before_a_run(
    stores: Stores, level: str, committed: str, elsewhere: str, lacking: str
) -> None:
    """Rendering and a sweep both ask for the source; keys, and remotes that no output names, may stay private."""
    commit(stores, committed)
    folder = Path(os.environ["DVC_GLOBAL_CONFIG_DIR"])
    folder.mkdir()
    ((folder / "config") if level == "global" else (stores.clone / ".dvc/config.local")).write_text(elsewhere)
    if lacking:
        with pytest.raises(RemoteError) as caught:
            source(stores.clone, allow_dirty=False)
        assert caught.value.what.endswith(f": {lacking}.")
        assert "commit .dvc/config" in caught.value.remedy
    else:
        assert "differs" not in require_committed(stores.clone)


def test_a_relative_address_is_a_warning(stores: Stores) -> None:
    """A run's clone lies elsewhere; the address of a remote that no output names is of no interest."""
    commit(stores, DEFAULT + STORAGE + DATASETS)
    assert "remote.storage.url is relative: a run looks for it from its own clone" in require_committed(stores.clone)
    commit(stores, DEFAULT + section("storage", url=stores.storage) + DATASETS + section("copy", url="../copy"))
    assert require_committed(stores.clone) == ""


def test_an_address_that_this_machine_replaces_is_a_warning(stores: Stores, capsys: pytest.CaptureFixture[str]) -> None:
    """A copy that is nearer may be meant; relative paths name the same place from every clone."""
    commit(stores, DEFAULT + STORAGE + DATASETS)
    local = stores.clone / ".dvc/config.local"
    local.write_text(STORAGE)
    source(stores.clone, allow_dirty=False)
    assert "differs" not in capsys.readouterr().out
    local.write_text(section("storage", url="/near"))
    source(stores.clone, allow_dirty=False)
    assert "remote.storage.url differs" in capsys.readouterr().out


def test_every_s3_remote_that_is_used_gets_the_keys(
    stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A remote that only a `.dvc` file names is one of them; the default is a folder."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "of the machine")
    own = section("storage", url=stores.storage) + section("datasets", url="s3://bucket/datasets")
    write_config(stores.clone, own)
    configure_dvc(stores.clone, tmp_path, Credentials(s3={"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "key"}))
    assert os.environ["AWS_ACCESS_KEY_ID"] == "AKIA"


def test_a_profile_of_this_machine_does_not_replace_the_keys_of_s3(
    stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit's configuration or the environment may name one, which has other keys, or is not there."""
    from botocore.session import Session

    given = {"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "key"}
    for name in (*given, "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "of the machine")
    monkeypatch.setenv("AWS_PROFILE", "mine")
    base = section("base", url="s3://bucket", profile="work")
    write_config(stores.clone, base + section("storage", url="remote://base/models"))
    configure_dvc(stores.clone, tmp_path, Credentials(s3=given))
    for profile in (None, "work"):
        found = Session(profile=profile).get_credentials()
        assert (found.access_key, found.secret_key) == ("AKIA", "key")
    assert (tmp_path / "credentials/aws").stat().st_mode & 0o777 == 0o600


def test_names_in_other_alphabets_are_written(stores: Stores, tmp_path: Path) -> None:
    """DVC reads them, but writes its configuration in ASCII alone."""
    named = stores.folder / "Store für alle"
    named.mkdir()
    write_config(stores.clone, section("storage", url=named))
    run_git("commit", "--quiet", "--all", "--message=configured", cwd=stores.clone)
    with set_up_copy(stores.clone, Credentials()) as (copy, _):
        assert find_remotes(copy)[0].url == str(named)
        assert find_missing(copy, {}, str) == {}
    assert configure_dvc(stores.clone, tmp_path / "Téléchargements", Credentials()).endswith(str(named))


@pytest.mark.usefixtures("_own_settings")
def test_the_users_own_git_settings_do_not_change_a_copy(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may rename the remote, or run a program after each checkout."""
    (stores.folder / "hooks").mkdir()
    (stores.folder / "hooks/post-checkout").write_text("#!/bin/sh\nexit 2\n")
    (stores.folder / "hooks/post-checkout").chmod(0o755)
    settings = f"[clone]\ndefaultRemoteName = upstream\n[core]\nhooksPath = {stores.folder}/hooks\n"
    (stores.folder / "gitconfig").write_text(settings)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(stores.folder / "gitconfig"))
    with set_up_copy(stores.clone, Credentials()) as (copy, _):
        assert run_git("remote", "get-url", "origin", cwd=copy) == str(stores.origin)


def test_a_relative_origin_is_the_same_from_everywhere(stores: Stores) -> None:
    """A copy of the clone, and the mirror in it, lie in other folders."""
    run_git("remote", "set-url", "origin", "../" * 2 + "origin.git", cwd=stores.clone)
    (stores.clone / "below").mkdir()
    wanted = str((stores.clone / "../../origin.git").resolve())
    assert find_git_remote(stores.clone / "below") == wanted


def test_a_chained_drive_without_an_account_is_refused_before_dvc_waits_for_a_browser(
    stores: Stores, tmp_path: Path
) -> None:
    """The remote's own address begins with `remote://`."""
    base = section("base", url="gdrive://folder")
    write_config(stores.clone, base + section("storage", url="remote://base/models"))
    with pytest.raises(CredentialsError):
        configure_dvc(stores.clone, tmp_path, Credentials())


@pytest.mark.parametrize(
    ("url", "base", "wrong"),
    [
        ("remote://storage/x", "/nowhere", "remote.storage.url is remote://storage/x, which leads back to itself"),
        ("remote://base/x", "remote://Storage/y", "remote.base.url is remote://Storage/y, which leads back to itself"),
        ("remote://basis/x", "/nowhere", "remote.storage.url is remote://basis/x, which names no remote"),
    ],
)
def test_an_address_that_leads_nowhere_is_named(stores: Stores, url: str, base: str, wrong: str) -> None:
    """DVC follows a circle without end. The error has the file, the key, its value and the command that sets it."""
    plain(stores)
    run_git("push", "--quiet", "origin", "HEAD:main", cwd=stores.clone)
    write_config(stores.clone, section("storage", url=url) + section("base", url=base))
    write_run(stores.clone)
    sync = (check, partial(recover, say=str), partial(rehearse, say=str), publish)
    for kind, calls in ((SyncError, sync), (RemoteError, (find_remotes, require_committed))):
        for call in calls:
            with pytest.raises(kind, match=re.escape(f".dvc/config: {wrong}")) as caught:
                call(stores.clone)
            assert "`dvc remote modify " in caught.value.remedy


@pytest.mark.parametrize("scheme", ["https", "ssh"])
def test_a_password_with_a_slash_is_never_shown(stores: Stores, tmp_path: Path, scheme: str) -> None:
    """Git and DVC take its beginning for a port, and would print it; they are not asked."""
    plain(stores)
    pointers = {f"{DATA}.dvc": (stores.clone / f"{DATA}.dvc").read_text()}
    write_run(stores.clone)
    url = f"{scheme}://me:sesame/open@127.0.0.1:9/x.git"
    sync = (check, partial(recover, say=str), partial(rehearse, say=str), publish)
    pull = partial(pull_objects, place=tmp_path / "a", pointers=pointers, credentials=Credentials(), what="pulling")
    for key, calls in {
        "remote.storage.url": (*sync, find_remotes, pull, partial(find_missing, pointers=pointers, redact=str)),
        "remote.origin.url": (*sync, find_git_remote, partial(configure_git, credentials=Credentials())),
    }.items():
        if key == "remote.storage.url":
            write_config(stores.clone, section("storage", url=url))
        else:
            write_config(stores.clone, section("storage", url=stores.storage))
            run_git("remote", "set-url", "origin", url, cwd=stores.clone)
        for call in calls:
            with pytest.raises((SyncError, RemoteError), match=re.escape(key)) as caught:
                call(stores.clone)
            assert "%2F" in caught.value.remedy
            assert_no_secret(caught.value, ("sesame", "open@"))


@pytest.mark.parametrize("call", [check, partial(recover, say=str), publish])
def test_a_clone_that_is_not_set_up_for_publishing_is_told_how(stores: Stores, call: Callable[[Path], object]) -> None:
    """Its remote is of a kind that publishing does not know, or it has no folder .dvc."""
    write_run(stores.clone)
    write_config(stores.clone, section("storage", url="ssh://me@127.0.0.1/place"))
    with pytest.raises(SyncError, match=r"the DVC remote cannot be opened: .*ssh") as caught:
        call(stores.clone)
    assert "in a folder, on Google Drive or on S3" in caught.value.remedy
    shutil.rmtree(stores.clone / ".dvc")
    with pytest.raises(SyncError, match="is not set up for DVC") as caught:
        call(stores.clone)
    assert "dvc init" in caught.value.remedy


def test_an_output_whose_remote_leads_nowhere_names_it(stores: Stores, tmp_path: Path) -> None:
    """Preflight and the pull show the same error; what does not need that remote goes on."""
    plain(stores)
    broken = section("own", url="remote://own")
    write_config(stores.clone, section("storage", url=stores.storage) + broken)
    text = (stores.clone / f"{DATA}.dvc").read_text()
    assert find_missing(stores.clone, {f"{DATA}.dvc": text}, str) == {}
    pointers = {f"{DATA}.dvc": f"{text}  remote: own\n"}
    with pytest.raises(RemoteError, match=r"remote\.own\.url is remote://own, which leads back to itself"):
        find_missing(stores.clone, pointers, str)
    with pytest.raises(RemoteError, match=r"remote\.own\.url is remote://own, which leads back to itself"):
        pull_objects(stores.clone, tmp_path / "pulled", pointers, Credentials(), "pulling")
    assert [remote.name for remote in find_remotes(stores.clone)] == ["storage"]


def test_a_version_aware_default_remote_is_named_before_anything_is_uploaded(stores: Stores) -> None:
    """DVC itself only says that '<command>' is unsupported."""
    write_config(stores.clone, section("storage", url="s3://bucket/place", version_aware="true"))
    with pytest.raises(SyncError, match="storage is version_aware") as caught:
        rehearse(stores.clone, say=str)
    assert "dvc remote add -d" in caught.value.remedy


def test_a_dataset_without_a_hash_gets_a_remedy_that_dvc_accepts(stores: Stores) -> None:
    """`dvc add` refuses an import that was not downloaded, and a cloud-versioned folder has hashes of files only."""
    file = stores.clone / f"{DATA}.dvc"
    file.parent.mkdir(parents=True)
    for text, remedy in (
        ("deps:\n- path: set\nouts:\n- path: detection\n", f"dvc update {DATA}.dvc"),
        (
            "outs:\n- path: detection\n  files:\n  - relpath: a\n    version_id: x\n",
            f"dvc remove {DATA}.dvc",
        ),
        ("outs:\n- path: detection\n", f"dvc add {DATA}"),
    ):
        file.write_text(text)
        with pytest.raises(DatasetError) as caught:
            read_pointer(stores.clone, SMALL)
        assert remedy in caught.value.remedy


def test_a_branch_whose_chained_remote_has_another_base_is_elsewhere(stores: Stores) -> None:
    """Its objects are not called missing: the same `remote://base/models` leads to another place there."""
    chained(stores)
    run_git("add", "--all", cwd=stores.clone)
    run_git("commit", "--quiet", "--message=dataset", cwd=stores.clone)
    run_git("push", "--quiet", "origin", "HEAD:main", cwd=stores.clone)
    run_git("checkout", "--quiet", "-b", "moved", cwd=stores.clone)
    config = stores.clone / ".dvc/config"
    config.write_text(config.read_text().replace("/storage\n", "/elsewhere\n"))
    run_git("commit", "--quiet", "--all", "--message=moved", cwd=stores.clone)
    run_git("push", "--quiet", "origin", "moved", cwd=stores.clone)
    (finding,) = check(stores.clone_again()).findings
    assert (finding.kind, "refs/heads/moved" in finding.what) == ("elsewhere", True)
