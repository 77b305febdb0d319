"""Step 2 installs what the lock says over the host's torch, and leaves the host as it was."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from lib.install import install

HOST = {"torch": "2.10.0+cu128", "torchvision": "0.25.0+cu128", "numpy": "2.3.1"}
SCRIPT = """
import importlib.metadata, importlib.util, json, os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from lib.install import install
said = [install(Path(sys.argv[1]), Path(sys.argv[2])) for _ in range(2)]
found = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "ultralytics", "dvc", "wandb")}
where = {name: importlib.util.find_spec(name).origin for name in ("ultralytics", "dvc", "wandb")}
print(json.dumps({"said": said, "found": found, "where": where, "path": os.environ["PYTHONPATH"]}))
"""


def test_nothing_is_done_where_everything_is_installed(tmp_path: Path) -> None:
    """The sandbox: uv has installed the lock already."""
    before = list(sys.path), os.environ.get("PYTHONPATH")
    said = install(ROOT, tmp_path / "packages")
    assert said.startswith("everything in uv.lock is installed; torch ")
    assert (list(sys.path), os.environ.get("PYTHONPATH")) == before
    assert not (tmp_path / "packages").exists()


@pytest.mark.slow
def test_the_lock_is_installed_over_the_hosts_torch(tmp_path: Path) -> None:
    """A bare Python that claims Kaggle's torch: every other package comes into a folder of its own, hashes checked."""
    host = tmp_path / "host"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(host)], check=True)
    site = next(host.glob("lib/python3*/site-packages"))
    for name, version in HOST.items():  # metadata is all that step 2 asks of them
        (site / f"{name}-{version}.dist-info").mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (site / f"{name}-{version}.dist-info/METADATA").write_text(metadata)

    def state() -> dict[str, str]:
        files = (path for path in host.rglob("*") if path.is_file())
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = state()
    overlay = tmp_path / "scratch/packages"
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env["PATH"] = os.pathsep.join([str(Path(str(shutil.which("uv"))).parent), env["PATH"]])
    done = subprocess.run(
        [str(host / "bin/python"), "-B", "-c", SCRIPT, str(ROOT), str(overlay)],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert "installed over the host's torch 2.10.0+cu128" in told["said"][0]
    assert told["said"][1].startswith("everything in uv.lock is installed")
    assert {name: told["found"][name] for name in ("torch", "numpy")} == {
        "torch": HOST["torch"],
        "numpy": HOST["numpy"],
    }
    assert all(path.startswith(str(overlay)) for path in told["where"].values())
    assert told["path"] == str(overlay)  # training's worker processes find the same
    assert state() == before
    folders = {path.name.partition("-")[0].lower() for path in overlay.glob("*.dist-info")}
    assert not folders & {"torch", "torchvision", "numpy", "triton", "ipykernel", "pyzmq", "jupyter_client", "tornado"}
    assert not [name for name in folders if name.startswith(("nvidia_cu", "nvidia_nccl"))]
