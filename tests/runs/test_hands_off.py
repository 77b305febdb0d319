"""Three experiments train on an emulated Kaggle by themselves, in short sessions, under a sweep that dies."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from itertools import cycle
from pathlib import Path
from typing import Any

import nbformat
import pytest
from conftest import ROOT, parameters_of, run_git
from git_host_emulator import GitHost
from kaggle_emulator import USER, WEEK, Dataset, KaggleEmulator, ProgramSession

from lib.experiment.load import load_experiment
from lib.kaggle.notebook import bake, read_notebook, read_sources
from lib.sandbox.dataset import draw_dataset
from lib.sandbox.make import make_sandbox

SMALL = ROOT / "experiments/000_det_sandbox.yaml"
TOKEN = "ghs_" + "0123456789" * 4
EPOCHS = 30
EXECUTE = """
import sys
from pathlib import Path
from lib.kaggle.notebook import execute
execute(Path(sys.argv[1]), Path(sys.argv[2]))
"""
KEYS: dict[str, dict[str, Any]] = {
    "long": {"training.epochs": EPOCHS},
    "endless": {"training.epochs": 1000},
    "broken": {"dataset": "data/missing"},
}
"""What tells the experiments apart: one ends, one must be stopped, and one never trains."""


class Story:
    """A Git host with a sandbox's repository, an emulated Kaggle that runs what it gets, and two people's machines."""

    def __init__(self, folder: Path, kaggle: KaggleEmulator, host: GitHost) -> None:
        self.folder, self.kaggle = folder, kaggle
        data = folder / "data"
        draw_dataset(data, "detection", counts={"train": 32, "val": 8, "test": 8}, size=160)
        self.origin = make_sandbox(ROOT, folder / "sandbox", load_experiment(SMALL), data).origin
        host.add_token(TOKEN)
        address = host.add_repository("me/training", self.origin, public=True)
        self.machines = [folder / name for name in ("one", "two")]
        for machine in self.machines:
            run_git("clone", "--quiet", self.origin, machine, cwd=folder)
            run_git("remote", "set-url", "origin", address, cwd=machine)
        self.secrets = folder / "secrets.json"
        self.secrets.write_text(json.dumps({"GITHUB_TOKEN": TOKEN}))
        self.secrets.chmod(0o600)
        self.files = []
        for name, values in KEYS.items():
            keys = {"session.checkpoint_minutes": 0.01, "session.lease_minutes": 0.2, "training.image_size": 64}
            experiment = load_experiment(SMALL, {"name": name, **keys, **values})
            self.files.append(folder / f"{name}.yaml")
            self.files[-1].write_text(json.dumps(experiment.model_dump(mode="json")))
        kaggle.session_of = self.run
        kaggle.quota = (0.0, 30.0)

    def run(self, pushed: dict[str, Any]) -> ProgramSession:
        """Execute a pushed notebook on an empty machine, without a GPU."""
        folder = self.folder / f"session-{len(self.kaggle.pushes)}"
        folder.mkdir()
        given = folder / "given.ipynb"
        given.write_text(pushed["text"])
        here = {"accelerator": "none", "working": str(folder), "secrets": str(self.secrets)}
        notebook = bake(read_notebook(read_sources(ROOT)), parameters_of(given) | here)
        nbformat.write(notebook, folder / "notebook.ipynb")
        return ProgramSession([sys.executable, "-c", EXECUTE, folder / "notebook.ipynb", folder])

    def start(self, machine: Path, *words: object) -> subprocess.Popen[str]:
        """Start a command of the project on one of the machines."""
        # the proxy leads to Kaggle alone
        git = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "http.proxy", "GIT_CONFIG_VALUE_0": ""}
        env = self.kaggle.environment(self.folder) | git | {"GITHUB_TOKEN": TOKEN}
        return subprocess.Popen(
            [sys.executable, "-m", "lib", *map(str, words)], cwd=machine, env=env, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def sweep(self, machine: Path) -> subprocess.Popen[str]:
        """Start one pass of the sweep, as cron would."""
        folder = self.folder / f"sweep-{machine.name}"
        return self.start(machine, "sweep", *self.files, "--on", "kaggle", "--once", "--folder", folder)

    def sessions(self, name: str) -> list[ProgramSession]:
        """Return the sessions of an experiment's kernel."""
        kernel = self.kaggle.kernels.get(f"{USER}/train-detection-{name}")
        return [each for each in kernel.sessions if isinstance(each, ProgramSession)] if kernel else []

    def refs(self) -> list[str]:
        """Return the refs of the repository, except main and its identity."""
        listed = run_git("for-each-ref", "--format=%(refname)", cwd=self.origin).splitlines()
        return [ref for ref in listed if ref != "refs/heads/main" and not ref.startswith("refs/kaggle/")]

    def show(self, branch: str, name: str, path: str) -> str:
        """Return a file of a branch's run."""
        return run_git("show", f"{branch}:artifacts/detection/{name}/{path}", cwd=self.origin)

    def epoch(self, name: str) -> int:
        """Return the epochs that the checkpoint of an experiment has."""
        branch = f"kaggle-checkpoint-detection-{name}"
        return json.loads(self.show(branch, name, "checkpoint.json"))["epoch"] if self.has(branch) else 0

    def has(self, branch: str) -> bool:
        """Return whether there is a branch."""
        return f"refs/heads/{branch}" in self.refs()


@pytest.mark.slow
def test_three_experiments_come_to_their_ends_by_themselves(tmp_path: Path) -> None:
    """The first session of each is killed at its limit; one finishes in the second, one is stopped, one fails twice.

    At first nothing can be pushed: the secrets dataset is being processed, and then the week's GPU hours are used up.
    The sweep is killed right after its first push, and goes on from another machine.
    """
    with KaggleEmulator() as kaggle, GitHost(tmp_path / "host") as host:
        kaggle.datasets[f"{USER}/kaggle-training-secrets"] = Dataset(states=["BLOBS_RECEIVED", "READY"])
        story = Story(tmp_path, kaggle, host)
        for reason in ("for the secrets dataset (blobs_received)", "0.00h of 30.00h left until"):
            waiting = story.sweep(story.machines[1])
            output = waiting.communicate()[0]
            assert (reason in output, waiting.returncode, kaggle.pushes) == (True, 3, []), output
            kaggle.quota = (30.0, 30.0)
        kaggle.advance(WEEK)
        first = story.sweep(story.machines[0])
        while not kaggle.pushes:
            assert first.poll() is None, first.communicate()[0]
            time.sleep(0.02)
        os.killpg(first.pid, signal.SIGKILL)
        before, stop, status, output = dict.fromkeys(KEYS, 0), None, 3, ""
        end = time.monotonic() + 780
        for machine in cycle(story.machines[::-1]):
            assert time.monotonic() < end, output + "".join(
                session.log[-2000:] for name in KEYS for session in story.sessions(name)
            )
            for _ in range(20):
                for name in ("long", "endless"):
                    if len(sessions := story.sessions(name)) == 1 and not sessions[0].is_over and story.epoch(name):
                        sessions[0].end("ERROR", "Your notebook exceeded its time limit")
                        before[name] = story.epoch(name)
                if stop is None and len(story.sessions("endless")) > 1 and story.epoch("endless") > before["endless"]:
                    stop = story.start(story.machines[0], "stop", "detection/endless")
                time.sleep(0.2)
            sweep = story.sweep(machine)
            output, status = sweep.communicate()[0], sweep.returncode
            assert len(kaggle.active()) <= 2
            if status != 3:
                break
        assert stop is not None
        assert (stop.wait(), status) == (0, 1), output
        assert [len(story.sessions(name)) for name in KEYS] == [2, 2, 2], output
        last = story.sweep(story.machines[0])
        assert (last.wait(), len(kaggle.pushes)) == (1, 6)
    assert "its last 2 sessions on Kaggle completed no epoch" in output
    branches = {name: [ref for ref in story.refs() if f"kaggle-train-detection-{name}-" in ref] for name in KEYS}
    assert [len(found) for found in branches.values()] == [1, 1, 0]
    left = {ref for ref in story.refs() if not ref.startswith(("refs/heads/kaggle-train-", "refs/pushes/"))}
    assert left == {"refs/heads/kaggle-checkpoint-detection-endless"}  # for --resume
    for name, state in {"long": "finished", "endless": "stopped"}.items():
        (branch,) = branches[name]
        assert json.loads(story.show(branch, name, "run.json"))["state"] == state
        rows = csv.DictReader(story.show(branch, name, "train/results.csv").splitlines())
        epochs = [int(row["epoch"]) for row in rows]
        assert epochs == list(range(1, len(epochs) + 1))
        assert before[name] < len(epochs) == (EPOCHS if name == "long" else len(epochs))
