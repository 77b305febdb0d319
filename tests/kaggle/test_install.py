"""Step 2 installs the locked packages over the host's torch, and leaves the host unchanged."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from lib.errors import InstallError
from lib.kaggle import install as step
from lib.kaggle.install import STAMP, WHEELS, find_wheels, install, parse, run_installer

HOST = {"torch": "2.10.0+cu128", "torchvision": "0.25.0+cu128", "numpy": "2.3.1"}
SCRIPT = """
import importlib.metadata, importlib.util, json, os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from lib.kaggle import install as step
commands = []
run = step.run_installer
step.run_installer = lambda command, cwd: commands.append(command) or run(command, cwd)
reports = [step.install(Path(sys.argv[1]), Path(sys.argv[2]), inputs=Path(sys.argv[3]))]
count = len(commands)
reports.append(step.install(Path(sys.argv[1]), Path(sys.argv[2]), inputs=Path(sys.argv[3])))
found = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "ultralytics", "dvc", "wandb")}
where = {name: importlib.util.find_spec(name).origin for name in ("ultralytics", "dvc", "wandb")}
print(json.dumps({"reports": reports, "found": found, "where": where, "path": os.environ["PYTHONPATH"],
                  "again": len(commands) - count}))
"""


@dataclass(frozen=True)
class Bare:
    """A host: a Python that claims Kaggle's torch, by metadata and one file of each package."""

    folder: Path
    python: Path

    def state(self) -> dict[str, str]:
        """Return the hash of every file."""
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def install(
        self, overlay: Path, inputs: Path, script: str = SCRIPT, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run step 2 twice in one process."""
        env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        env["PATH"] = os.pathsep.join([str(Path(str(shutil.which("uv"))).parent), env["PATH"]])
        return subprocess.run(
            [str(self.python), "-B", "-c", script, str(ROOT), str(overlay), str(inputs)],
            cwd=self.folder.parent, env={**env, **environment}, capture_output=True, text=True, timeout=600,
        )  # fmt: skip


@pytest.fixture
def bare(tmp_path: Path) -> Bare:
    """Return a host with only torch, torchvision and numpy."""
    host = tmp_path / "host"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(host)], check=True)
    site = next(host.glob("lib/python3*/site-packages"))
    for name, version in HOST.items():
        (site / f"{name}-{version}.dist-info").mkdir()
        (site / f"{name}-{version}.dist-info/METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        (site / f"{name}-{version}.dist-info/RECORD").write_text(f"{name}/__init__.py,,\n")
        (site / name).mkdir()
        (site / name / "__init__.py").write_text(f"__version__ = {version!r}\n")
    return Bare(host, host / "bin/python")


def test_nothing_is_done_if_everything_is_installed(tmp_path: Path) -> None:
    """In the sandbox uv has already installed the lock."""
    before = list(sys.path), os.environ.get("PYTHONPATH")
    message = install(ROOT, tmp_path / "packages", inputs=tmp_path)
    assert message.startswith("Everything in uv.lock is installed; torch ")
    assert (list(sys.path), os.environ.get("PYTHONPATH")) == before
    assert not (tmp_path / "packages").exists()


def test_a_python_that_the_lock_does_not_cover_is_rejected(tmp_path: Path) -> None:
    """The error comes before anything is installed."""
    lock = (ROOT / "uv.lock").read_text()
    (tmp_path / "uv.lock").write_text(re.sub(r'requires-python = ".*"', 'requires-python = ">=3.8, <3.9"', lock))
    with pytest.raises(InstallError, match=r"uv\.lock covers 3\.8 up to below 3\.9") as caught:
        install(tmp_path, tmp_path / "packages", inputs=tmp_path)
    assert "choose an environment" in caught.value.remedy


def test_the_output_of_an_installer_has_no_colours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A kernel sets FORCE_COLOR, whose escape codes would corrupt the list of requirements."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("CLICOLOR_FORCE", "1")
    requirements = step.export(ROOT)
    assert "\x1b" not in requirements
    lines = [line for line in requirements.splitlines() if not line.startswith("    --hash=sha256:")]
    assert len(lines) == len(parse(requirements)) > 100
    names = {name for name, *_ in parse(requirements)}
    assert "ultralytics" in names
    assert not {"torch", "torchvision", "numpy", "triton", "ipykernel", "pyzmq"} & names
    assert not [name for name in names if name.startswith("nvidia-cu")]


def test_an_installer_that_hangs_is_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An installer has a time limit."""
    monkeypatch.setattr(step, "TIMEOUT", 0.2)
    with pytest.raises(InstallError, match="took longer") as caught:
        run_installer([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path)
    assert "turn internet on" in caught.value.remedy


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        ("OSError: [Errno 28] No space left on device", "free some space"),
        ("error: failed to create directory `/x`: Read-only file system (os error 30)", "-p working DIR"),
        ("error: unrecognized subcommand 'export'", "uv is too old"),
        ("error: unexpected argument '--no-annotate' found", "uv is too old"),
        ("error: Required uv version `>=99` does not match the running version `0.13.9`.", "uv is too old"),
        ("The lockfile at `uv.lock` uses an unsupported schema version (v2, but only v1 is supported).", "too old"),
        ("/usr/bin/python3: No module named pip", "install uv, and run again"),
        ("error: externally-managed-environment", "install uv, and run again"),
        ("error: Failed to download `six==1.16.0`\n  cause: Hash mismatch for `six==1.16.0`", "make the wheels anew"),
        ("error: Failed to parse `uv.lock`\n  cause: TOML parse error at line 57", "run `uv lock`"),
        ("hint: Packages were unavailable because the network was disabled.", "turn internet on"),
        ("error: Failed to fetch: http://x/six/\n  cause: error sending request for url", "turn internet on"),
        ("ERROR: Could not find a version that satisfies the requirement uv (from versions: none)", "turn internet on"),
        ("error: No solution found\n  cause: Because there is no version of six==9", "use a registry that has"),
        ("cause: Because six was not found in the provided package locations and you require six", "use a registry"),
        ("error: something that nobody has seen", "correct what the message names"),
    ],
)
def test_each_cause_of_a_failed_installation_has_its_own_remedy(tmp_path: Path, message: str, remedy: str) -> None:
    """The texts are those of uv 0.2 to 0.13 and pip; only a missing network is remedied by turning internet on."""
    with pytest.raises(InstallError) as caught:
        run_installer([sys.executable, "-c", f"import sys; sys.exit({message!r})"], tmp_path)
    assert remedy in caught.value.remedy
    assert ("internet" in remedy) == ("internet" in caught.value.remedy)
    assert message in caught.value.what


def test_without_uv_and_pip_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The remedy is to install uv: internet, which is on, would not help."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "host")], check=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "host/bin/python"))
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InstallError, match="No module named pip") as caught:
        step.find_uv()
    assert "install uv, and run again" in caught.value.remedy


@pytest.mark.parametrize("mount", ["wheels", "datasets/somebody/wheels"])
def test_wheels_of_this_lock_are_found_in_both_mounts(tmp_path: Path, mount: str) -> None:
    """Wheels for another lock or another Python, and incomplete folders, are not used."""
    right: dict[str, Any] = {"lock": step.lock_hash(ROOT), "python": ".".join(map(str, sys.version_info[:2]))}
    for name, message in (("a", {**right, "lock": "0"}), ("b", {**right, "python": "3.7"}), ("c", None)):
        (tmp_path / name).mkdir()
        if message:
            (tmp_path / name / WHEELS).write_text(json.dumps(message))
    assert find_wheels(ROOT, tmp_path) is None
    (tmp_path / mount).mkdir(parents=True)
    (tmp_path / mount / WHEELS).write_text(json.dumps(right))
    assert find_wheels(ROOT, tmp_path) == tmp_path / mount


def test_the_lock_is_installed_over_the_hosts_torch(tmp_path: Path, bare: Bare) -> None:
    """Every other package is installed into a separate folder with its hash checked; a second call runs no program."""
    before = bare.state()
    overlay = tmp_path / "scratch/packages"
    overlay.mkdir(parents=True)
    (overlay / "half.py").write_text("")  # of a session that was killed here
    done = bare.install(overlay, tmp_path, FORCE_COLOR="1")
    assert done.returncode == 0, done.stderr
    message = json.loads(done.stdout.splitlines()[-1])
    assert (
        "the host's torch 2.10.0+cu128 and the 2 packages that belong to it are unchanged, byte for byte"
        in message["reports"][0]
    )
    assert message["reports"][1].startswith("Everything in uv.lock was installed in this session already")
    assert message["again"] == 0
    assert {name: message["found"][name] for name in ("torch", "numpy")} == {
        "torch": HOST["torch"],
        "numpy": HOST["numpy"],
    }
    assert all(path.startswith(str(overlay)) for path in message["where"].values())
    assert message["path"] == str(overlay)  # training's worker processes find the same
    assert bare.state() == before
    assert (overlay / STAMP).is_file()
    assert not (overlay / "half.py").exists()
    assert not overlay.with_name("packages.part").exists()
    folders = {path.name.partition("-")[0].lower() for path in overlay.glob("*.dist-info")}
    assert not folders & {"torch", "torchvision", "numpy", "triton", "ipykernel", "pyzmq", "jupyter_client", "tornado"}
    assert not [name for name in folders if name.startswith(("nvidia_cu", "nvidia_nccl"))]
    # another process of the same session, after the kernel was restarted
    again = bare.install(overlay, tmp_path, UV_OFFLINE="1", UV_NO_CACHE="1")
    assert json.loads(again.stdout.splitlines()[-1])["reports"][0].startswith("Everything in uv.lock was installed")


def test_a_change_of_the_hosts_torch_is_an_error(bare: Bare, tmp_path: Path) -> None:
    """A changed size or modification time of any of its files is an error."""
    script = SCRIPT.replace(
        "run(command, cwd)", "(torch.write_text('broken') if 'pip' in command else 0) or run(command, cwd)"
    )
    script = script.replace("commands = []", "commands = []\nimport torch\ntorch = Path(torch.__file__)")
    done = bare.install(tmp_path / "packages", tmp_path, script)
    assert done.returncode == 1
    assert "changed while packages were installed" in done.stderr


def test_a_package_that_the_kernel_has_imported_is_kept_and_reported(bare: Bare, tmp_path: Path) -> None:
    """The host's older `click` stays in this process, and the report lists it."""
    site = next(bare.folder.glob("lib/python3*/site-packages"))
    (site / "click-1.0.dist-info").mkdir()
    (site / "click-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: click\nVersion: 1.0\n")
    (site / "click-1.0.dist-info/RECORD").write_text("click.py,,\nclick-1.0.dist-info/RECORD,,\n")
    (site / "click-1.0.dist-info/top_level.txt").write_text("click\n")
    (site / "click.py").write_text("old = True\n")
    script = SCRIPT.replace("commands = []", "commands = []\nimport click").replace(
        "print(json", "import click\nassert click.old\nprint(json"
    )
    done = bare.install(tmp_path / "packages", tmp_path, script)
    assert done.returncode == 0, done.stderr
    assert re.search(r"kept in it: click 1\.0 \(locked: \d", json.loads(done.stdout.splitlines()[-1])["reports"][0])


def test_a_package_with_broken_metadata_is_passed_over(bare: Bare, tmp_path: Path) -> None:
    """Without a METADATA file, with an empty one, or with one of another encoding it does not stop the installation."""
    site = next(bare.folder.glob("lib/python3*/site-packages"))
    for number, content in enumerate((None, b"", b"Name: caf\xe9\nVersion: 1\n")):
        (site / f"broken{number}-1.0.dist-info").mkdir()
        (site / f"broken{number}-1.0.dist-info/RECORD").write_text(f"broken{number}.py,,\n")
        if content is not None:
            (site / f"broken{number}-1.0.dist-info/METADATA").write_bytes(content)
    # the environment of an image may name files that are not there, and settings of other installations
    given = {"UV_CONSTRAINT": "/nowhere.txt", "UV_OVERRIDE": "/nowhere.txt", "UV_BUILD_CONSTRAINT": "/nowhere.txt",
             "UV_EXCLUDE_NEWER": "2001-01-01", "UV_NO_BINARY": "1", "UV_SYSTEM_PYTHON": "1", "PIP_TARGET": "/nowhere",
             "PIP_CONSTRAINT": "/nowhere.txt", "GIT_DIR": "/nowhere"}  # fmt: skip
    done = bare.install(tmp_path / "packages", tmp_path, **given)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])["reports"][0]
    assert "the 2 packages that belong to it are unchanged, byte for byte" in report


def test_without_a_network_the_error_has_the_remedy(bare: Bare, tmp_path: Path) -> None:
    """Nothing is left behind either."""
    overlay = tmp_path / "packages"
    done = bare.install(overlay, tmp_path, UV_OFFLINE="1", UV_NO_CACHE="1")
    assert done.returncode == 1
    assert "turn internet on in the Kaggle settings, or attach the dataset" in done.stderr
    assert not overlay.exists()
    assert not overlay.with_name("packages.part").exists()


@pytest.mark.slow
def test_a_folder_of_wheels_replaces_the_network(bare: Bare, tmp_path: Path) -> None:
    """An attached folder of `python -m lib wheels` installs the same packages; a changed wheel is rejected."""
    folder = tmp_path / "input/wheels"
    python = ".".join(map(str, sys.version_info[:2]))
    words = [sys.executable, "-m", "lib", "wheels", str(folder), "--python", python]
    made = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert made.returncode == 0, made.stderr
    assert re.match(rf"\d+ wheels for Python {re.escape(python)}, \d+ MiB", made.stdout)
    overlay = tmp_path / "scratch/packages"
    offline = {"UV_OFFLINE": "1", "UV_NO_CACHE": "1"}
    done = bare.install(overlay, tmp_path / "input", **offline)
    assert done.returncode == 0, done.stderr
    message = json.loads(done.stdout.splitlines()[-1])["reports"][0]
    assert re.match(r"1\d\d packages from uv\.lock installed from the wheels in ", message)
    shutil.rmtree(overlay)
    victim = next(folder.glob("tqdm-*.whl"))
    with zipfile.ZipFile(victim, "a") as wheel:
        wheel.writestr("evil.py", "")
    done = bare.install(overlay, tmp_path / "input", **offline)
    assert done.returncode == 1
    assert "ash mismatch" in done.stderr
    assert not overlay.exists()


@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.12", "3.13"])
def test_wheels_can_be_gathered_for_the_pythons_of_kaggle(tmp_path: Path, python: str) -> None:
    """Every locked package has a wheel for Kaggle's present Python and for the announced one."""
    words = [sys.executable, "-m", "lib", "wheels", str(tmp_path), "--python", python]
    made = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert made.returncode == 0, made.stderr
    requirements = (tmp_path / "requirements.txt").read_text()
    assert len(list(tmp_path.glob("*.whl"))) == len(parse(requirements)) + 1  # and uv
    tag = f"cp{python.replace('.', '')}"
    assert all(re.search(rf"-({tag}-|py[23]|cp3\d+-abi3)", path.name) for path in tmp_path.glob("*.whl"))


def test_a_cache_that_cannot_be_written_is_not_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By itself uv refuses to start without its cache, which lies in the home."""
    (tmp_path / "home").touch()
    for name in ("UV_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert "dvc==" in step.export(ROOT)
