"""Whole runs over an emulated Google Drive, Git host and W&B: each publishes or shows why not, and none leaks.

After every run, successful or not, a scanner searches everything that the run wrote for each credential, in every
encoding that a client uses. The scanner has its own tests: otherwise an empty result would prove nothing.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import json
import os
import re
import secrets
import struct
import subprocess
import sys
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import quote, quote_plus

import emulated_run
import pytest
from conftest import ROOT, parameters_of, run_git
from drive_emulator import DriveEmulator, write_credentials
from emulated_services import NOTES, REPOSITORY, EmulatedServices

import render
from lib.experiment.load import load_experiment
from lib.experiment.modules import find_module
from lib.kaggle.notebook import bake, read_notebook, read_sources, write_rendered
from lib.remotes.credentials import Credentials, load_credentials
from lib.sandbox.dataset import draw_dataset
from lib.sandbox.make import Sandbox, make_sandbox

SMALL = load_experiment(
    ROOT / "experiments/000_det_sandbox.yaml", {"training.epochs": 1, "training.image_size": 64}, module="detection"
)
TRAINING = "9/10: Run training"
EXECUTE = """
import sys
from pathlib import Path
from lib.errors import RunError
from lib.kaggle.notebook import execute
try:
    execute(Path(sys.argv[1]), Path.cwd())
except RunError as problem:
    raise SystemExit(f"Error: {problem}")
"""


# ── the scanner ───────────────────────────────────────────────────────────────────────────────────────────────────────


def forms(value: str) -> set[bytes]:
    """Return the forms in which a value may appear: plain, quoted, escaped, in hex, and inside base64."""
    found: set[str] = set()
    for part in {value, *(line for line in value.splitlines() if len(line) > 16 and not line.startswith("-----"))}:
        escaped = json.dumps(part)[1:-1]
        found |= {part, quote(part, safe=""), quote(part), quote_plus(part), escaped, json.dumps(escaped)[1:-1]}
        found |= {part.encode().hex(), repr(part)[1:-1]}
        for offset in range(3):  # with any text before and after it: `user:`, or a whole document
            bits = 8 * (offset + len(part.encode()))
            encoded = base64.b64encode(bytes(offset) + part.encode()).decode()[-(-8 * offset // 6) : bits // 6]
            found |= {encoded, encoded.replace("+", "-").replace("/", "_")}
    return {form.encode() for form in found}


def contents(data: bytes) -> Iterator[bytes]:
    """Yield the bytes of a file, and everything that is compressed in them."""
    yield data
    if data[:2] == b"\x1f\x8b":
        with contextlib.suppress(OSError, EOFError, zlib.error):
            yield from contents(gzip.decompress(data))
    elif data[:2] == b"PK":
        with contextlib.suppress(zipfile.BadZipFile, NotImplementedError), zipfile.ZipFile(io.BytesIO(data)) as archive:
            for entry in archive.infolist():
                if entry.compress_type:  # the others are not compressed
                    yield from contents(archive.read(entry))
    elif data[:4] == b":W&B":
        yield b"".join(wandb_parts(data))
    elif data[:1] == b"\x78":
        with contextlib.suppress(zlib.error):
            yield zlib.decompress(data)


def wandb_parts(data: bytes) -> Iterator[bytes]:
    """Yield the parts of W&B's records, which LevelDB splits at blocks of 32 KiB."""
    at = 7
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        _, length, _ = struct.unpack("<IHB", data[at : at + 7])
        yield data[at + 7 : at + 7 + length]
        at += 7 + length


class Scanner:
    """Search for values that must not appear; each finding is `NAME in PLACE`."""

    def __init__(self, canaries: Mapping[str, str]) -> None:
        self._forms = {name: forms(value) for name, value in canaries.items()}

    def in_bytes(self, data: bytes, place: str) -> Iterator[str]:
        """Search some data, and everything that is compressed in it."""
        for content in contents(data):
            for name, wanted in self._forms.items():
                if any(form in content for form in wanted):
                    yield f"{name} in {place}"

    def in_folder(self, folder: Path, allowed: Path | None = None) -> Iterator[str]:
        """Search every file below a folder, its name, the target of a link, and every Git object."""
        for path in sorted(folder.rglob("*")):
            place = path.relative_to(folder.parent).as_posix()
            yield from self.in_bytes(path.name.encode(), f"the name {place}")
            if path.is_symlink():
                yield from self.in_bytes(os.fsencode(path.readlink()), f"the link {place}")
            elif path.is_file() and path != allowed:
                yield from self.in_bytes(path.read_bytes(), place)
            elif path.name == "objects" and (path.parent / "HEAD").is_file():
                yield from self.in_git(path.parent)

    def in_git(self, repository: Path) -> Iterator[str]:
        """Search every object of a Git repository, packed or loose, reachable or not."""
        command = ["git", "cat-file", "--batch-all-objects", "--batch", "--buffer"]
        environment = {**os.environ, "GIT_DIR": str(repository)}
        done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, check=True)
        yield from self.in_bytes(done.stdout, f"the objects of {repository}")

    def in_drive(self, drive: DriveEmulator) -> Iterator[str]:
        """Search every file of the Drive, trashed and incomplete ones too, every name, and every requested address."""
        with drive._lock:
            for item in drive._items.values():
                yield from self.in_bytes(item.title.encode(), "a name on the Drive")
                yield from self.in_bytes(item.data, f"{item.title} on the Drive")
            for name, session in drive._sessions.items():
                yield from self.in_bytes(bytes(session.data), f"an upload of {name}")
        yield from self.in_bytes("\n".join(drive.requests).encode(), "an address asked of the Drive")


class Processes:
    """Record the arguments of every process of the machine while the context is open."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, name="processes", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._end.wait(0.05):
            for folder in Path("/proc").iterdir():
                if folder.name.isdigit():
                    with contextlib.suppress(OSError):
                        self.seen.add((folder / "cmdline").read_bytes())


CANARY = f"1//0{secrets.token_hex(20)}"


def broken_key() -> str:
    """Return something that looks like a private key."""
    lines = [base64.b64encode(secrets.token_bytes(48)).decode() for _ in range(5)]
    return "\n".join(["-----BEGIN PRIVATE KEY-----", *lines, "-----END PRIVATE KEY-----", ""])


def git_blob(repository: Path, data: bytes, *, pack: bool) -> None:
    """Write an unreachable object into a Git repository."""
    run_git("init", "--quiet", repository, cwd=repository.parent)
    (repository / "file").write_bytes(data)
    name = run_git("hash-object", "-w", "file", cwd=repository)
    (repository / "file").unlink()
    if pack:
        packs = repository / ".git/objects/pack/pack"
        subprocess.run(["git", "pack-objects", "-q", packs], cwd=repository, input=name.encode(), check=True)
        (repository / f".git/objects/{name[:2]}/{name[2:]}").unlink()


def frames(data: bytes) -> bytes:
    """Return a W&B log with one record that starts at the end of a block."""
    room = 32768 - 7 - 7 - 7 - 10
    head = b":W&B" + bytes(3) + struct.pack("<IHB", 0, room - 7, 1) + bytes(room - 7)
    first = 32768 - len(head) - 7
    return head + struct.pack("<IHB", 0, first, 2) + data[:first] + struct.pack("<IHB", 0, len(data), 4) + data[first:]


def write(file: Path, text: str) -> None:
    """Write a file into a new folder."""
    file.parent.mkdir(parents=True)
    file.write_text(text, encoding="utf-8")


def zipped(data: bytes) -> bytes:
    """Return a zip archive of a file."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a", data)
    return archive.getvalue()


PLANTS: dict[str, Callable[[Path], object]] = {
    "a file": lambda f: (f / "a").write_text(f"x{CANARY}y"),
    "a quoted address": lambda f: (f / "a").write_text(f"refresh_token={quote(CANARY, safe='')}&a=b"),
    "a notebook": lambda f: (f / "a").write_text(json.dumps({"text": [json.dumps({"token": CANARY})]})),
    "a header of git": lambda f: (f / "a").write_bytes(base64.b64encode(f"x-access-token:{CANARY}".encode())),
    "a header of wandb": lambda f: (f / "a").write_bytes(base64.b64encode(f"api:{CANARY}".encode())),
    "a document in base64": lambda f: (f / "a").write_bytes(base64.b64encode(f'{{"a":"{CANARY}","b":1}}'.encode())),
    "a folder below": lambda f: write(f / "b/c/d", CANARY),
    "a hidden file": lambda f: write(f / ".dvc/config.local", CANARY),
    "a file's name": lambda f: (f / CANARY.replace("//", "%2F%2F")).touch(),
    "a link": lambda f: (f / "a").symlink_to(f"/nowhere?{quote(CANARY, safe='')}"),
    "a compressed file": lambda f: (f / "a").write_bytes(gzip.compress(CANARY.encode())),
    "an archive": lambda f: (f / "a").write_bytes(zipped(CANARY.encode())),
    "an archive in an archive": lambda f: (f / "a").write_bytes(zipped(gzip.compress(CANARY.encode()))),
    "W&B's log, across a frame": lambda f: (f / "run-1.wandb").write_bytes(frames(CANARY.encode())),
    "a loose object": lambda f: git_blob(f / "a", CANARY.encode(), pack=False),
    "a packed object": lambda f: git_blob(f / "a", CANARY.encode(), pack=True),
}


@pytest.mark.parametrize("place", PLANTS)
def test_the_scanner_finds_a_value_in(tmp_path: Path, place: str) -> None:
    """The scanner finds the value in every kind of place on the disk, and no other value."""
    PLANTS[place](tmp_path)
    assert set(Scanner({"token": CANARY}).in_folder(tmp_path))
    assert not set(Scanner({"token": CANARY[::-1]}).in_folder(tmp_path))


def test_the_scanner_skips_only_the_allowed_file(tmp_path: Path) -> None:
    """The scanner passes over the allowed file and finds the value in every other one."""
    for name in ("allowed", "other"):
        (tmp_path / name).write_text(CANARY)
    assert list(Scanner({"token": CANARY}).in_folder(tmp_path, tmp_path / "allowed")) == [
        f"token in {tmp_path.name}/other"
    ]


def test_the_scanner_finds_a_value_on_the_drive() -> None:
    """The scanner finds a value in a file, in the trash, in a name, in an incomplete upload, and in an address."""
    plants: list[Callable[[DriveEmulator], object]] = [
        lambda drive: drive.put("a/b", CANARY.encode()),
        lambda drive: drive.trash(drive.put("a/b", CANARY.encode())),
        lambda drive: drive.put(f"a/{CANARY.replace('//', '%2F%2F')}", b""),
        lambda drive: drive._sessions.update({"a": type("Session", (), {"data": bytearray(CANARY.encode())})()}),
        lambda drive: drive.requests.append(f"GET /files?token={quote(CANARY, safe='')}"),
    ]
    for plant in plants:
        drive = DriveEmulator()
        plant(drive)
        assert len(set(Scanner({"token": CANARY}).in_drive(drive))) == 1


def test_the_scanner_finds_a_value_among_arguments() -> None:
    """The arguments of every other process are recorded and searched."""
    with Processes() as processes:
        subprocess.run([sys.executable, "-c", "import time; time.sleep(0.5)", CANARY], check=True)
    assert list(Scanner({"token": CANARY}).in_bytes(b"\n".join(processes.seen), "arguments"))


def test_the_scanner_finds_one_line_of_a_private_key() -> None:
    """A client's error may show only one line of a private key."""
    key = broken_key()
    scanner = Scanner({"key": key})
    assert list(scanner.in_bytes(f"cannot read {key.splitlines()[3]!r}".encode(), "an error"))
    assert list(scanner.in_bytes(json.dumps({"private_key": key}).encode(), "a file"))
    assert not list(scanner.in_bytes(b"-----BEGIN PRIVATE KEY-----", "an error"))


# ── running ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Run:
    """The result of one run."""

    folder: Path
    status: int
    output: str
    """Standard output and error of the process that runs the notebook."""
    leaks: list[str]
    wandb_requests: list[str]
    """The requests to W&B."""

    @property
    def working(self) -> Path:
        """The run's working folder."""
        return self.folder / "working"

    @property
    def clone(self) -> Path:
        """The clone of the run."""
        return self.working / "kaggle-training"

    @property
    def log(self) -> str:
        """The text of `run.log`."""
        return (self.working / "run.log").read_text(encoding="utf-8")

    @property
    def shown(self) -> str:
        """The output of the executed notebook: printed text, and errors."""
        notebook = json.loads((self.folder / "out/train_module_1_detection.executed.ipynb").read_text(encoding="utf-8"))
        outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
        parts = ["".join(output.get("text", "")) + "\n".join(output.get("traceback", ())) for output in outputs]
        return re.sub(r"\x1b\[[\d;]*m", "", "\n".join(parts))


@dataclass
class Stage:
    """A sandbox whose repository and dataset are on emulated services, and the runs over them."""

    folder: Path
    sandbox: Sandbox
    services: EmulatedServices
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(1, 1000)))
    stopped: dict[str, tuple[Run, bool]] = field(default_factory=dict)
    """Each run with a fault, by the fault's name, and whether both remotes were unchanged after it."""

    def refs(self) -> dict[str, str]:
        """Return every ref of the repository, except its main branch and its identity."""
        lines = run_git("for-each-ref", "--format=%(refname) %(objectname)", cwd=self.sandbox.origin).splitlines()
        found = {ref: commit for ref, commit in map(str.split, lines) if ref != "refs/heads/main"}
        return {ref: commit for ref, commit in found.items() if not ref.startswith("refs/kaggle/")}

    def objects(self) -> dict[str, list[tuple[str, bytes]]]:
        """Return every file of the Drive, except the repository's mark."""
        files = self.services.drive.files()
        return {path: copies for path, copies in files.items() if not path.startswith("kaggle-training-repository-")}

    def run(self, when: Mapping[str, Callable[[], object]] | None = None, *, epochs: int = 1) -> Run:
        """Run the notebook as render.py does; call `when[text]` once a line of its output contains `text`."""
        folder = self.folder / f"run-{next(self.numbers)}"
        home = folder / "home"
        for path in (home, folder / "tmp"):
            path.mkdir(parents=True)
        # a user whose git stores every password that it sees
        config = f"[credential]\n\thelper = store --file={home}/git-credentials\n[user]\n\tname = A\n\temail = a@b.c\n"
        (home / ".gitconfig").write_text(config, encoding="utf-8")
        module = find_module("detection")
        values = {
            "module": module.name,
            "experiment": SMALL.model_dump(mode="json"),
            "accelerator": "none",
            "working": str(folder / "working"),
            "epochs": epochs,
            **self.services.parameters,
        }
        notebook = bake(read_notebook(read_sources(ROOT)), values)
        rendered = write_rendered(folder / "out", module, notebook, None)
        environment = {
            **{name: value for name, value in self.services.environment().items() if not name.startswith("GIT_")},
            "HOME": str(home),
            "TMPDIR": str(folder / "tmp"),
            "GIT_CONFIG_SYSTEM": os.devnull,
            "DVC_SITE_CACHE_DIR": str(folder / "dvc"),
            "MPLCONFIGDIR": str(self.folder / "matplotlib"),  # building its list of fonts takes seconds
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "COLUMNS": "200",
            NOTES: str(folder / "notes"),
        }
        requests = self.services.wandb.requests if self.services.wandb else []
        requests.clear()
        with Processes() as processes:
            status, output = _follow([sys.executable, "-c", EXECUTE, rendered.notebook], environment, when or {})
        places = {
            "the output": output.encode(),
            "a process's arguments": b"\n".join(processes.seen),
            "an address asked of the Git host": "\n".join(map(str, self.services.host.requests)).encode(),
            "an address asked of W&B": "\n".join(requests).encode(),
        }
        assert b"ipykernel_launcher" in places["a process's arguments"]
        assert "ipykernel_launcher" in (folder / "notes").read_text(encoding="utf-8")
        return Run(folder, status, output, sorted(self._search(folder, places)), list(requests))

    def _search(self, folder: Path, places: Mapping[str, bytes]) -> set[str]:
        # the one file that DVC's client needs; on Kaggle it is not in the run's output
        allowed = folder / "working/scratch/credentials/gdrive.json"
        scanner = Scanner(self.services.canaries())
        found = {finding for place, data in places.items() for finding in scanner.in_bytes(data, place)}
        for each in (folder, self.sandbox.origin.parent, self.folder / "cache", self.folder / "matplotlib"):
            found |= set(scanner.in_folder(each, allowed))
        found |= set(scanner.in_drive(self.services.drive))
        others = [path for path in allowed.parent.glob("*") if path != allowed]
        if others or (allowed.exists() and allowed.stat().st_mode & 0o777 != 0o600):
            found.add(f"{allowed} is not private, or not alone: {others}")
        return found


def _follow(
    command: list[str | Path], environment: Mapping[str, str], when: Mapping[str, Callable[[], object]]
) -> tuple[int, str]:
    """Run a program and return its status and output; call `when[text]` once a line contains `text`."""
    waiting, lines = dict(when), []
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            for text in [text for text in waiting if text in line]:
                waiting.pop(text)()
    assert not waiting or process.returncode, f"{waiting} was never printed"
    return process.returncode, "".join(lines)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Yield one sandbox with a few images, and services that run as long as this file's tests."""
    folder = tmp_path_factory.mktemp("emulated")
    draw_dataset(folder / "data", "detection", counts={"train": 4, "val": 2, "test": 2}, size=64)
    sandbox = make_sandbox(ROOT, folder / "sandbox", SMALL, folder / "data")
    with EmulatedServices(folder / "services", sandbox, wandb=True) as services:
        yield Stage(folder, sandbox, services)


@pytest.fixture
def services(stage: Stage) -> Iterator[EmulatedServices]:
    """Yield the services, and repair them after a test that breaks them. Without a W&B key, curves are offline."""
    stage.services.write_secrets(WANDB_API_KEY=None)
    yield stage.services
    stage.services.restore()
    stage.services.write_secrets(WANDB_API_KEY=None)


# ── runs that publish ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def published(stage: Stage) -> Run:
    """Return a successful run, long enough for a checkpoint upload."""
    stage.services.write_secrets(WANDB_API_KEY=None)
    run = stage.run(epochs=15)
    assert run.status == 0, run.output[-5000:]
    return run


def branches(stage: Stage, run: Run) -> list[str]:
    """Return the run's branch on the Git host, and all runs under way there."""
    found = re.search(r"create branch (\S+)\)", run.output)
    assert found, run.output[-3000:]
    return [ref for ref in stage.refs() if found[1] in ref or "refs/runs/" in ref]


@pytest.mark.slow
def test_a_whole_run_publishes_a_branch_and_its_objects(stage: Stage, published: Run) -> None:
    """The Git host has one branch, the Drive both weights under the hashes that it names, and no run is under way."""
    (ref,) = branches(stage, published)
    assert ref.startswith("refs/heads/kaggle-train-detection-exp000-sandbox-")
    for name in ("best.pt", "last.pt"):
        path = f"artifacts/detection/exp000_sandbox/train/weights/{name}"
        pointer = run_git("show", f"{ref}:{path}.dvc", cwd=stage.sandbox.origin)
        (md5,) = re.findall(r"md5: (\w+)", pointer)
        ((_, data),) = stage.objects()[f"files/md5/{md5[:2]}/{md5[2:]}"]
        assert data == (published.clone / path).read_bytes()
    assert all(path.startswith("files/md5/") for path in stage.objects())


@pytest.mark.slow
def test_a_whole_run_uses_the_services_with_its_accounts(stage: Stage, published: Run) -> None:
    """The repository is private, the Drive got the uploads, and the notes list the programs that the run started."""
    services = stage.services
    address = services.host.address(REPOSITORY)
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    refused = subprocess.run(["git", "ls-remote", address], env=environment, capture_output=True, text=True)
    assert refused.returncode
    assert services.host.count("POST .*git-receive-pack .*refs/heads/kaggle-train-detection") == 1
    assert services.drive.count("PUT /upload/drive/v2/files") >= 2
    assert services.drive.count("POST /token") >= 1
    assert "'fetch'" in (published.folder / "notes").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_whole_run_uploads_a_checkpoint_and_deletes_it(stage: Stage, published: Run) -> None:
    """A checkpoint is uploaded to the services during training; nothing of it is left after the finished run."""
    assert "Checkpoint: epoch " in published.shown
    assert stage.services.host.count("POST .*git-receive-pack .*refs/heads/kaggle-checkpoint-detection") >= 2
    assert [ref for ref in stage.refs() if "checkpoint" in ref or "runs" in ref] == []
    command = [sys.executable, "-m", "lib", "check", "--secrets", stage.services.parameters["secrets"]]
    checked = subprocess.run(
        command, cwd=published.clone, env=stage.services.environment(), capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.slow
def test_a_whole_run_leaves_a_complete_log_and_notebook(published: Run) -> None:
    """Log and notebook have every step and the summary, without an error; the log is also among the artifacts."""
    steps = [f"{number}/10: " for number in range(11)]
    for text in (published.log, published.shown):
        assert [step for step in steps if step not in text] == []
        assert "(exp000_sandbox) is trained and published" in text
        assert "Traceback" not in text
    assert (published.clone / "artifacts/detection/exp000_sandbox/run.log").read_text(encoding="utf-8") == published.log
    notebook = json.loads((published.folder / "out/train_module_1_detection.executed.ipynb").read_text())
    assert all(cell["execution_count"] for cell in notebook["cells"] if cell["cell_type"] == "code")


@pytest.mark.slow
def test_preflight_finds_nothing_wrong_with_a_whole_run(published: Run) -> None:
    """Both remotes, the accounts, the dataset and W&B are ok in the preflight table."""
    table = published.shown.partition("Preflight: checking everything")[2].partition("6/10: ")[0]
    for name in ("Git remote", "DVC remote", "Drive account", "Git account", "dataset", "W&B"):
        assert re.search(rf"^  ok       {name} ", table, re.MULTILINE), table
    assert "ERROR" not in table


@pytest.mark.slow
def test_a_whole_run_leaves_no_credential(published: Run) -> None:
    """No file contains a credential; the private one that DVC's client reads is removed when the run ends."""
    assert published.leaks == []
    assert not (published.working / "scratch/credentials/gdrive.json").exists()


@pytest.mark.slow
def test_the_published_model_can_be_fetched_into_another_clone(stage: Stage, published: Run) -> None:
    """`git clone` with the token and `dvc pull` from the Drive fetch the trained weights."""
    services, clone = stage.services, stage.folder / "second"
    (ref,) = branches(stage, published)
    address = services.host.address(REPOSITORY)
    account = Credentials(github_token=services.values["GITHUB_TOKEN"]).git_environment(address)
    command = ["git", "clone", "--quiet", "--branch", ref.removeprefix("refs/heads/"), address, str(clone)]
    subprocess.run(command, env={**os.environ, **account}, check=True)
    file = write_credentials(stage.folder / "second.json", services.drive, **services.values["GDRIVE_USER_CREDENTIALS"])
    (clone / ".dvc/config.local").write_text(f"['remote \"storage\"']\n    gdrive_user_credentials_file = {file}\n")
    subprocess.run([sys.executable, "-m", "dvc", "pull"], cwd=clone, env=services.environment(), check=True)
    path = "artifacts/detection/exp000_sandbox/train/weights/best.pt"
    assert (clone / path).read_bytes() == (published.clone / path).read_bytes()
    assert len(list((clone / "data/detection/images").rglob("*.jpg"))) == 8


@pytest.mark.slow
def test_a_run_without_a_key_sends_nothing_to_wandb(published: Run) -> None:
    """A run without a key records offline and sends W&B no request."""
    assert published.wandb_requests == []


@pytest.mark.slow
def test_an_expired_access_token_is_renewed(stage: Stage, services: EmulatedServices) -> None:
    """The run publishes, and the new token does not leak either."""
    before = services.drive.count("POST /token")
    services.drive.expire()
    run = stage.run()
    assert run.status == 0, run.output[-5000:]
    assert services.drive.count("POST /token") > before
    assert len(branches(stage, run)) == 1
    assert any("given out" in name for name in services.canaries())
    assert run.leaks == []


@pytest.mark.slow
def test_a_key_that_wandb_refuses_does_not_stop_the_run(stage: Stage, services: EmulatedServices) -> None:
    """Preflight warns, training and publication continue, and no file of W&B's client has the key."""
    assert services.wandb is not None
    services.write_secrets()
    services.wandb.keys = set()
    run = stage.run()
    assert run.status == 0, run.output[-5000:]
    assert re.search(r"^  WARNING  W&B .*rejects WANDB_API_KEY.*\n *→ copy the key anew", run.shown, re.MULTILINE)
    assert "W&B does not answer or refuses the key; curves are recorded offline" in run.shown
    assert len(branches(stage, run)) == 1
    assert any(run.working.glob("wandb/**/*.log"))
    assert run.leaks == []


@pytest.mark.slow
def test_a_service_account_publishes_and_its_key_does_not_leak(stage: Stage, services: EmulatedServices) -> None:
    """No line of the private key and no token that was issued for it is found."""
    key = services.use_service_account()
    run = stage.run()
    assert run.status == 0, run.output[-5000:]
    assert key["client_email"] in run.shown
    assert len(branches(stage, run)) == 1
    assert run.leaks == []


def test_the_script_gives_the_kernel_a_drive_and_a_private_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The notebook names both; the account is outside of the sandbox, and is deleted at the end with the services."""
    draw_dataset(tmp_path / "data", "detection", counts={"train": 1, "val": 1, "test": 1}, size=64)
    looked: list[Path] = []

    def look(notebook: Path, _cwd: Path) -> Path:
        values = parameters_of(notebook)
        secrets, repository = Path(str(values["secrets"])), str(values["repository"])
        looked.append(secrets)
        assert secrets.stat().st_mode & 0o777 == 0o600
        assert tmp_path not in secrets.parents
        assert repository.startswith("http://127.0.0.1:")
        asks = ["git", "ls-remote", repository, "refs/heads/main"]
        assert subprocess.run(asks, capture_output=True).returncode
        account = load_credentials(str(secrets)).git_environment(repository)
        listed = subprocess.run(asks, env={**os.environ, **account}, capture_output=True, text=True, check=True)
        assert listed.stdout.split()[0] == values["commit"]
        script = (
            "import json, lib.remotes.credentials; from googleapiclient.discovery_cache import get_static_doc as doc; "
        )
        script += "print(lib.remotes.credentials.TOKEN_URI, json.loads(doc('drive', 'v2'))['rootUrl'])"
        urls = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
        assert re.fullmatch(r"(http://127\.0\.0\.1:\d+/)token \1\n", urls.stdout)
        assert "WANDB_API_KEY" not in os.environ
        return notebook

    monkeypatch.setattr(render, "execute", look)
    monkeypatch.setenv("WANDB_API_KEY", "of the user")
    words = ["detection", "--sandbox", str(tmp_path / "sandbox"), "--output", str(tmp_path / "o")]
    before = dict(os.environ)
    emulated_run.main([*words, "--data", str(tmp_path / "data")], standalone_mode=False)
    assert dict(os.environ) == before
    assert not looked[0].exists()


@pytest.mark.slow
def test_the_script_runs_over_emulated_services(stage: Stage) -> None:
    """After `tests/emulated_run.py MODULE`, the published branch and the weights that it names are in the sandbox."""
    sandbox = stage.folder / "of-render"
    command = [sys.executable, "tests/emulated_run.py", "detection", "--sandbox", str(sandbox)]
    command += ["--output", str(stage.folder / "rendered"), "--data", str(stage.folder / "data")]
    command += ["-p", "epochs", "1", "-p", "training.image_size", "64"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("Emulated: ")]
    assert "a Google Drive" in line
    assert "a Git host" in line
    refs = run_git("for-each-ref", "--format=%(refname)", cwd=sandbox / "origin.git").splitlines()
    (ref,) = [ref for ref in refs if ref != "refs/heads/main" and not ref.startswith("refs/kaggle/")]
    path = "artifacts/detection/exp000_sandbox/train/weights/best.pt"
    (md5,) = re.findall(r"md5: (\w+)", run_git("show", f"{ref}:{path}.dvc", cwd=sandbox / "origin.git"))
    (trained,) = sandbox.glob(f"runs/*/kaggle-training/{path}")
    assert (sandbox / "dvc-remote/files/md5" / md5[:2] / md5[2:]).read_bytes() == trained.read_bytes()


# ── runs that stop ────────────────────────────────────────────────────────────────────────────────────────────────────


def lose_object(services: EmulatedServices, *, listing: bool) -> None:
    """Move one object of the dataset to the Drive's trash: its listing, or one of its files."""
    dataset = [path for path in services.drive.files() if path.endswith(".dir")]
    if not listing:
        (copies,) = [services.drive.files()[path] for path in dataset]
        md5 = json.loads(copies[0][1])[0]["md5"]
        dataset = [f"files/md5/{md5[:2]}/{md5[2:]}"]
    for path in dataset:
        services.drive.trash(services.drive.files()[path][0][0])


def fill_drive(services: EmulatedServices) -> None:
    """Leave no free space on the Drive."""
    services.drive.capacity = 0


def protect_names(services: EmulatedServices) -> None:
    """Protect every branch name that a run could publish."""
    services.host.protected = ["refs/heads/kaggle-*"]


@dataclass(frozen=True)
class Fault:
    """A fault, the cause and remedy that the notebook shows, and the step at which the run stops."""

    make: Callable[[EmulatedServices], object]
    cause: str
    remedy: str
    last_step: str


BEFORE_TRAINING = {
    "secrets.json is malformed": Fault(
        lambda services: services.write_secrets(json.dumps(services.values, indent=2)[:-1]),
        "secrets.json cannot be read as a JSON object",
        "correct it",
        "1/10",
    ),
    "secrets.json has a wrong key": Fault(
        lambda services: services.write_secrets(WANDB_API_KEY=None, GITHUB_TOKENS=services.values["GITHUB_TOKEN"]),
        "GITHUB_TOKENS is not a known key",
        "correct the keys named above",
        "1/10",
    ),
    "the Git token is wrong": Fault(
        lambda services: services.host.expire(services.values["GITHUB_TOKEN"]),
        "Authentication failed",
        "GITHUB_TOKEN in secrets.json",
        "1/10",
    ),
    "the Drive refresh token is revoked": Fault(
        lambda services: services.drive.revoke(),
        "invalid_grant",
        "GDRIVE_USER_CREDENTIALS",
        "5/10",
    ),
    "the service account's key is broken": Fault(
        lambda services: services.use_service_account(private_key=broken_key()),
        "key",
        "secrets.json",
        "5/10",
    ),
    "the Git token may only read": Fault(
        lambda services: services.host.add_token(services.values["GITHUB_TOKEN"], rights=["read"]),
        "Permission to octocat/kaggle-training.git denied",
        "give GITHUB_TOKEN write permission",
        "5/10",
    ),
    "names like the run's are protected": Fault(
        protect_names,
        "GH013",
        "allow new branches named kaggle-*",
        "5/10",
    ),
    "the Drive is full": Fault(
        fill_drive,
        "quota",
        "free space",
        "5/10",
    ),
    "the dataset's listing is missing": Fault(
        lambda services: lose_object(services, listing=True),
        "is not on the DVC remote",
        "dvc push data/detection",
        "5/10",
    ),
    "an image is missing": Fault(
        lambda services: lose_object(services, listing=False),
        "is not on the DVC remote",
        "dvc push data/detection",
        "5/10",
    ),
}


def stop(stage: Stage, services: EmulatedServices, name: str) -> tuple[Run, bool]:
    """Return the run with this fault, and whether both remotes were unchanged after it."""
    if name not in stage.stopped:
        BEFORE_TRAINING[name].make(services)
        before = stage.refs(), stage.objects()
        run = stage.run()
        stage.stopped[name] = run, (stage.refs(), stage.objects()) == before
    return stage.stopped[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", BEFORE_TRAINING)
def test_a_run_stops_before_training_and_leaves_nothing_when(
    stage: Stage, services: EmulatedServices, name: str
) -> None:
    """The run stops at the first step that can detect the fault; the remotes are unchanged, no credential leaks."""
    run, unchanged = stop(stage, services, name)
    assert run.status == 1
    last = re.findall(r"^\[\d\d:\d\d:\d\d\] (\d+/10)", run.output, re.MULTILINE)[-1]
    assert (last, TRAINING in run.output) == (BEFORE_TRAINING[name].last_step, False)
    assert unchanged
    assert run.leaks == []


@pytest.mark.slow
@pytest.mark.parametrize("name", BEFORE_TRAINING)
def test_a_run_shows_cause_and_remedy_when(stage: Stage, services: EmulatedServices, name: str) -> None:
    """Cause and remedy are in the executed notebook and in the log."""
    run, _ = stop(stage, services, name)
    for text in (run.shown, run.log):
        assert BEFORE_TRAINING[name].cause in text, run.output[-3000:]
        assert BEFORE_TRAINING[name].remedy in text, run.output[-3000:]
    assert "What to do:" in run.output


WHILE_PUBLISHING = {
    "the Drive is full after preflight": Fault(
        fill_drive, "storageQuotaExceeded", "free space in that Google account", ""
    ),
    "every upload is cut": Fault(
        lambda services: services.drive.add_fault("PUT /upload", "cut body", 10**6),
        "Google Drive cannot be reached",
        "check that internet is on",
        "",
    ),
    "the branch's name is protected after preflight": Fault(protect_names, "GH013", "allow new branches", ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WHILE_PUBLISHING)
def test_a_trained_run_is_rolled_back_and_keeps_its_models_when(
    stage: Stage, services: EmulatedServices, name: str
) -> None:
    """Faults after preflight: cause and remedy are shown, both remotes are unchanged, the weights are in place."""
    fault = WHILE_PUBLISHING[name]
    before = stage.refs(), stage.objects()
    run = stage.run({TRAINING: lambda: fault.make(services)})
    assert run.status == 1
    for text in (run.shown, run.log):
        assert fault.cause in text, run.output[-3000:]
        assert fault.remedy in text, run.output[-3000:]
        assert "everything is rolled back" in text
    assert (stage.refs(), stage.objects()) == before
    weights = run.clone / "artifacts/detection/exp000_sandbox/train/weights"
    assert all((weights / name).stat().st_size for name in ("best.pt", "last.pt"))
    assert not list(weights.glob("*.dvc"))
    assert run.leaks == []
