"""Claims on whole publications over Drive and over S3: a real Git remote, DVC's own clients, faults on the wire.

`test_sync.py` says what the protocol promises; here it is held where the DVC remote is no folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import drive_emulator
import pytest
import s3_emulator
from conftest import ROOT, RUN, SMALL_FILES, WEIGHTS, Stores, run_git
from drive_emulator import DriveEmulator, client_pointed_at
from s3_emulator import S3Emulator

from lib.errors import DvcPushError, GitPushError, SyncError
from lib.remotes.credentials import Credentials
from lib.sync import Publication, Published, check, recover, sync_outputs
from lib.sync.stores import gdrive as drive_module
from lib.sync.stores import s3 as s3_module

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of DVC's own

BRANCH = "kaggle-train-detection-exp001-20250102-030405"
STAMP = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
OBJECT = r"(?!.*kaggle-training-)"  # no mark
SECRETS = (*drive_emulator.SECRETS, *s3_emulator.SECRETS)
REFUSE_BRANCHES = """
while read old new ref; do
  case "$ref" in refs/heads/kaggle-train-*) echo "no new branches today" >&2; exit 1;; esac
done
"""


@dataclass(frozen=True)
class Remote:
    """A DVC remote behind HTTP: how to name it in a clone, to look into it and to disturb it."""

    kind: str
    connect: Callable[[Path], object]
    objects: Callable[[], dict[str, list[bytes]]]
    """Every file that can be seen but the owner's mark: path from `files/`, and its copies."""
    hidden: Callable[[], list[str]]
    """What is stored and cannot be seen."""
    plant: Callable[[str, bytes], object]
    """Store one more copy, as a stranger would."""
    disturb: Callable[[str, int], object]
    """Let so many uploads go wrong: `full`, `cut` or `lost`."""
    heal: Callable[[], object]
    environment: dict[str, str]
    """What a child process needs to reach it; nothing where this process will do."""


@contextmanager
def drive_remote(folder: Path) -> Iterator[Remote]:
    """Give a Drive."""
    kinds: dict[str, drive_emulator.Kind] = {"full": "quota", "cut": "cut body", "lost": "lost answer"}
    with DriveEmulator() as drive, client_pointed_at(drive):
        yield Remote(
            "drive",
            lambda clone: drive_emulator.configure_clone(clone, drive, folder / "credentials"),
            lambda: {p: [data for _, data in copies] for p, copies in drive.files().items() if "-owner-" not in p},
            list,
            drive.put,
            lambda kind, times: drive.add_fault(
                f"^{'POST /upload' if kind == 'full' else f'PUT {OBJECT}'}", kinds[kind], times
            ),
            drive.clear_faults,
            {"PYTHONPATH": str(drive_emulator.write_sitecustomize(folder / "site", drive))},
        )


@contextmanager
def s3_remote(_folder: Path) -> Iterator[Remote]:
    """Give a bucket."""
    kinds: dict[str, s3_emulator.Kind] = {"full": "full", "cut": "cut body", "lost": "lost answer"}
    with S3Emulator() as s3:
        s3.make_bucket("bucket")
        yield Remote(
            "s3",
            lambda clone: s3.configure_clone(clone, "bucket"),
            lambda: {k.removeprefix("dvc/"): [data] for k, data in s3.files("bucket").items() if "-owner-" not in k},
            lambda: s3.remains("bucket"),
            lambda path, data: s3.client().put_object(Bucket="bucket", Key=f"dvc/{path}", Body=data),
            lambda kind, times: s3.add_fault(f"^PUT {OBJECT}", kinds[kind], times),
            s3.clear_faults,
            {},
        )


@pytest.fixture(params=[drive_remote, s3_remote], ids=["drive", "s3"])
def remote(
    request: pytest.FixtureRequest, stores: Stores, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Remote]:
    """Give each kind of DVC remote, named by the clone of `stores` and by every clone made from now on."""
    monkeypatch.setattr(drive_module, "PAUSES", tuple(0.0 for _ in drive_module.PAUSES))
    monkeypatch.setenv("GDRIVE_NON_INTERACTIVE", "1")
    for name, value in s3_emulator.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with request.param(tmp_path) as remote:
        remote.connect(stores.clone)
        run_git("commit", "--quiet", "--all", "--message=the remote", cwd=stores.clone)
        run_git("push", "--quiet", "origin", "HEAD:main", cwd=stores.clone)
        yield remote


def publish(clone: Path, branch: str = BRANCH) -> Published:
    """Publish the run of a clone."""
    credentials = Credentials(drive=drive_emulator.CANARIES, source="the test")
    run = Publication(clone, branch, "Training of exp001\n", RUN, WEIGHTS, STAMP)
    return sync_outputs(run, credentials, say=str)


def path_of(file: Path) -> str:
    """Give the path of a file's object on the remote."""
    oid = hashlib.md5(file.read_bytes()).hexdigest()
    return f"files/md5/{oid[:2]}/{oid[2:]}"


def wanted(clone: Path) -> dict[str, list[bytes]]:
    """Give what the remote holds when the run, and nothing else, is published once."""
    return {path_of(clone / name): [(clone / name).read_bytes()] for name in WEIGHTS}


def assert_no_secret(error: BaseException, stores: Stores) -> None:
    """Check that no credential is shown by the error, or written into the clone or the Git remote."""
    shown = "".join(traceback.format_exception(error)).encode()
    for place in (stores.clone, stores.origin):
        shown += b"\n".join(path.read_bytes() for path in place.rglob("*") if path.is_file())
    assert not [secret for secret in SECRETS if secret.encode() in shown]


@contextmanager
def nothing_changes(stores: Stores, remote: Remote) -> Iterator[None]:
    """Both remotes, the models and the clone's status are after the block what they were before it."""

    def world() -> dict[str, object]:
        clone = stores.clone
        return {
            "refs": stores.refs(),
            "objects": remote.objects(),
            "hidden": remote.hidden(),
            "models": {name: (clone / name).read_bytes() for name in WEIGHTS},
            "files": sorted(path for path in (clone / "artifacts").rglob("*") if path.is_file()),
            "status": run_git("status", "--porcelain", "--untracked-files=all", cwd=clone),
        }

    before = world()
    yield
    assert world() == before


def test_a_second_machine_pulls_what_was_published(stores: Stores, remote: Remote) -> None:
    """By DVC itself, for Drive in a process of its own: identical bytes."""
    from dvc.repo import Repo

    assert publish(stores.clone).uploaded == 10_000
    assert remote.objects() == wanted(stores.clone)
    assert stores.intents() == []
    second = stores.clone_again(branch=BRANCH)
    remote.connect(second)
    if remote.environment:
        pull = [sys.executable, "-m", "dvc", "pull", "--quiet"]
        subprocess.run(pull, cwd=second, check=True, env={**os.environ, **remote.environment})
    else:
        with Repo(str(second)) as repo:
            repo.pull()
    for name in (*WEIGHTS, *SMALL_FILES):
        assert (second / name).read_bytes() == (stores.clone / name).read_bytes()


def test_publishing_the_same_content_again_uploads_nothing(stores: Stores, remote: Remote) -> None:
    """Under another name, and under the same."""
    first = publish(stores.clone)
    assert publish(stores.clone) == Published(BRANCH, first.commit, 0, before=True)
    assert publish(stores.clone, "kaggle-train-detection-exp001-20250102-040506").uploaded == 0
    assert remote.objects() == wanted(stores.clone)


def test_a_refused_git_push_takes_back_exactly_the_new_objects(stores: Stores, remote: Remote) -> None:
    """One of the two models stood on the remote already and stays, with a stranger's object."""
    standing = (stores.clone / WEIGHTS[0]).read_bytes()
    remote.plant(path_of(stores.clone / WEIGHTS[0]), standing)
    remote.plant("files/md5/00/1122", b"a stranger's")
    stores.write_hook("pre-receive", REFUSE_BRANCHES)
    with nothing_changes(stores, remote), pytest.raises(GitPushError, match="no new branches today") as caught:
        publish(stores.clone)
    assert_no_secret(caught.value, stores)
    stores.remove_hook("pre-receive")
    assert publish(stores.clone).uploaded == 5_000
    assert remote.objects() == wanted(stores.clone) | {"files/md5/00/1122": [b"a stranger's"]}


def test_a_strangers_copies_of_the_same_content_stay(stores: Stores, remote: Remote) -> None:
    """All of them where the store keeps twins: none was ours."""
    for name in WEIGHTS:
        for _ in range(2):
            remote.plant(path_of(stores.clone / name), (stores.clone / name).read_bytes())
    stores.write_hook("pre-receive", REFUSE_BRANCHES)
    with nothing_changes(stores, remote), pytest.raises(GitPushError):
        publish(stores.clone)
    assert [len(copies) for copies in remote.objects().values()] == [2 if remote.kind == "drive" else 1] * 2


@pytest.mark.parametrize(
    ("kind", "remedy"), [("full", "free space"), ("cut", "check that internet is on")], ids=["full", "cut"]
)
def test_an_upload_that_fails_leaves_nothing(stores: Stores, remote: Remote, kind: str, remedy: str) -> None:
    """No object, no branch, no intent, no .dvc file; the models are in place, and the next call publishes."""
    remote.disturb(kind, 100)
    with nothing_changes(stores, remote), pytest.raises(DvcPushError) as caught:
        publish(stores.clone)
    assert remedy in caught.value.remedy
    assert "everything is undone" in caught.value.state
    assert_no_secret(caught.value, stores)
    remote.heal()
    publish(stores.clone)
    assert remote.objects() == wanted(stores.clone)


def test_an_upload_that_is_cut_once_is_published_all_the_same(stores: Stores, remote: Remote) -> None:
    """And nothing of the first attempt is left."""
    remote.disturb("cut", 1)
    publish(stores.clone)
    assert remote.objects() == wanted(stores.clone)
    assert remote.hidden() == []


def test_a_lost_answer_to_an_upload_is_settled(stores: Stores, remote: Remote) -> None:
    """The client asks or sends again: published, once."""
    remote.disturb("lost", 1)
    publish(stores.clone)
    assert remote.objects() == wanted(stores.clone)
    assert stores.intents() == []


def test_uploads_whose_answers_never_come_are_undone(stores: Stores, remote: Remote) -> None:
    """The objects did arrive, and are taken back though the client never heard of it."""
    remote.disturb("lost", 100)
    with nothing_changes(stores, remote), pytest.raises(DvcPushError):
        publish(stores.clone)


def test_what_cannot_be_taken_back_is_left_to_recover(stores: Stores, remote: Remote) -> None:
    """Where the objects cannot be deleted the intent stays; `recover` finishes once they can."""
    with nothing_changes(stores, remote):
        stores.write_hook("pre-receive", REFUSE_BRANCHES)
        deleting = DELETING[remote.kind]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(deleting, "delete", refuse)
            with pytest.raises(SyncError, match="no new branches today") as caught:
                publish(stores.clone)
        assert "recover" in caught.value.state
        assert len(stores.intents()) == 1
        assert recover(stores.clone, older_than=0, say=str) == 0


DELETING = {"drive": drive_module.DriveObjects, "s3": s3_module.S3Objects}


def refuse(*_: object) -> None:
    """Delete nothing."""
    raise DvcPushError("the remote does not delete today.")


PUBLISH_LARGE_FILES = """
import json, os, sys
from datetime import datetime
from pathlib import Path
from lib.sync import Publication, sync_outputs

clone, folder, stamp, names = Path(sys.argv[1]), sys.argv[2], datetime.fromisoformat(sys.argv[3]), tuple(sys.argv[4:])

def publish(branch):
    return sync_outputs(Publication(clone, branch, "x", folder, names, stamp), say=str, progress=False).uploaded

def told(file, key):
    lines = Path(f"/proc/self/{file}").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])

publish("kaggle-train-detection-small-20250102-030405")  # every library is loaded
for name in names:
    os.replace(clone / f"{name}.large", clone / name)
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
standing, read = told("status", "VmRSS"), told("io", "rchar")
uploaded = publish("kaggle-train-detection-large-20250102-030405")
print(json.dumps([uploaded, told("io", "rchar") - read, 1024 * (told("status", "VmHWM") - standing)]))
"""
LARGE = 48 * 2**20  # bytes of each of the two models: more than all that may be held of them


def assert_large_files_are_read_little(clone: Path, environment: dict[str, str], times: int) -> None:
    """Publish two large files in a process of its own, and look at what it has read and held."""
    for number, name in enumerate(WEIGHTS):
        with (clone / f"{name}.large").open("wb") as file:
            for block in range(LARGE // 2**20):
                file.write(bytes([number, block]) * 2**19)
    words = [sys.executable, "-c", PUBLISH_LARGE_FILES, str(clone), RUN, STAMP.isoformat(), *WEIGHTS]
    paths = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    done = subprocess.run(words, cwd=clone, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    uploaded, read, held = json.loads(done.stdout.splitlines()[-1])
    assert uploaded == 2 * LARGE
    assert read < (times + 0.2) * uploaded
    assert held < LARGE


@pytest.mark.slow
def test_large_files_are_read_for_their_hash_and_their_upload_and_never_held(stores: Stores, remote: Remote) -> None:
    """Both models at once. Over plain HTTP, as here, S3's client computes two checksums first; with TLS, meanwhile."""
    assert_large_files_are_read_little(stores.clone, remote.environment, 4 if remote.kind == "s3" else 2)


def test_large_files_are_copied_to_a_folder_and_never_held(stores: Stores) -> None:
    """Read for their hash and for the copy."""
    assert_large_files_are_read_little(stores.clone, {}, 2)


class TestRevoked:
    """Drive alone: the permission is taken back."""

    @pytest.fixture
    def drive(self, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> Iterator[DriveEmulator]:
        """Give a Drive that the clone names."""
        monkeypatch.setattr(drive_module, "PAUSES", (0.0,))
        monkeypatch.setenv("GDRIVE_NON_INTERACTIVE", "1")
        with DriveEmulator() as drive, client_pointed_at(drive):
            drive_emulator.configure_clone(stores.clone, drive, stores.folder / "credentials")
            yield drive

    def test_before_a_publication_nothing_is_started(self, stores: Stores, drive: DriveEmulator) -> None:
        """No object, no branch, no intent, no .dvc file; the error says how to make new credentials."""
        drive.revoke()
        files = sorted((stores.clone / "artifacts").rglob("*"))
        with pytest.raises(DvcPushError, match="invalid_grant") as caught:
            publish(stores.clone)
        assert "GDRIVE_USER_CREDENTIALS" in caught.value.remedy
        assert sorted((stores.clone / "artifacts").rglob("*")) == files
        assert stores.refs() == {}
        assert drive.files() == {}
        assert_no_secret(caught.value, stores)

    def test_in_the_middle_recover_finishes_with_new_ones(self, stores: Stores, drive: DriveEmulator) -> None:
        """The intent stays, for nothing can be deleted; the error says so, and new credentials settle it."""
        stores.write_hook("pre-receive", f"touch {stores.folder}/reached; {REFUSE_BRANCHES}")
        real = drive._take_fault

        def revoke_at_the_first_upload(line: str) -> drive_emulator.Kind | None:
            if line.startswith("PUT"):
                drive.revoke()
            return real(line)

        drive._take_fault = revoke_at_the_first_upload  # type: ignore[method-assign]
        with pytest.raises(DvcPushError, match="invalid_grant") as caught:
            publish(stores.clone)
        assert "GDRIVE_USER_CREDENTIALS" in caught.value.remedy
        assert "recover" in caught.value.state
        assert len(stores.intents()) == 1
        assert_no_secret(caught.value, stores)
        drive._take_fault = real  # type: ignore[method-assign]
        drive.restore()
        drive_emulator.configure_clone(stores.clone, drive, stores.folder / "credentials")
        assert recover(stores.clone, older_than=0, say=str) == 0
        assert drive.files() == {}
        assert stores.refs() == {}


def test_check_reads_a_store_and_takes_twins_for_a_remark(stores: Stores, remote: Remote) -> None:
    """Every copy is looked at: a second right one is no fault, a second wrong one is."""
    publish(stores.clone)
    credentials = Credentials(drive=drive_emulator.CANARIES, source="the test")

    def kinds() -> list[str]:
        checked = check(stores.clone, credentials, older_than=0, say=str)
        assert checked.is_healthy == (not {f.kind for f in checked.findings} - {"twins"})
        return [finding.kind for finding in checked.findings]

    assert kinds() == []
    path, (content,) = next(iter(wanted(stores.clone).items()))
    remote.plant(path, content)
    assert kinds() == (["twins"] if remote.kind == "drive" else [])
    remote.plant(path, content[:-1])
    assert kinds() == (["damaged", "twins"] if remote.kind == "drive" else ["damaged"])
    remote.plant("files/md5/00/112233445566778899aabbccddeeff", b"nobody's")
    assert kinds()[-1 if remote.kind == "s3" else -2] == "unnamed"
