"""How long a training will take follows from the newest published run like it."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
from conftest import ROOT, Stores, run_git

from lib.experiment.load import load_experiment
from lib.experiment.schema import Experiment
from lib.remotes.credentials import Credentials
from lib.results.estimate import Estimate, estimate, hours_to_push
from lib.sync import Refs

MD5, OTHER = "a" * 32 + ".dir", "b" * 32 + ".dir"
FOLDER = "artifacts/detection/exp001"


def experiment(**values: Any) -> Experiment:
    """Return an experiment of 100 epochs."""
    changed = {"name": "exp001", "training.epochs": 100} | {
        key.replace("__", "."): value for key, value in values.items()
    }
    return load_experiment(ROOT / "experiments/001_det_baseline.yaml", changed)


def push_branch(stores: Stores, branch: str, files: dict[str, Any]) -> None:
    """Push a branch with these files of artifacts."""
    clone = stores.clone_again(branch)
    for name, content in files.items():
        (clone / FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / FOLDER / name).write_text(json.dumps(content), encoding="utf-8")
    run_git("add", "--all", cwd=clone)
    run_git("commit", "--quiet", "--message=run", cwd=clone)
    run_git("push", "--quiet", "origin", f"HEAD:refs/heads/{branch}", cwd=clone)


def publish(stores: Stores, day: int, *, seconds: float = 3000.0, epochs: int = 30, **more: Any) -> str:
    """Publish a run of that day, of 30 epochs in 3,000 s on Kaggle's T4 x2; return its branch."""
    branch = f"kaggle-train-detection-exp001-202601{day:02}-000000"
    made = more.pop("experiment", experiment())
    record = {
        "branch": branch,
        "commit": "c" * 40,
        "experiment": made.model_dump(mode="json"),
        "dataset": {"md5": MD5, "pictures": {"train": 80, "val": 10, "test": 10}},
        "machine": {"kaggle": True, "gpus": [{"name": "Tesla T4", "memory": 15360}] * 2},
        "seconds": {"training": seconds, "2/10: Install": 200.0, "6/10: Pull": 100.0, "9/10: Run training": seconds},
    }
    push_branch(stores, branch, {"run.json": record | more, "train/metrics.json": {"epochs": epochs}})
    return branch


def estimated(stores: Stores, wanted: Experiment | None = None, accelerator: str = "t4x2") -> Estimate | None:
    """Return the estimate in the stores' clone."""
    return estimate(stores.clone, Refs(stores.clone, Credentials()), wanted or experiment(), accelerator)


def test_an_estimate_that_is_not_known_is_said(stores: Stores, capsys: pytest.CaptureFixture[str]) -> None:
    """No run like it is published, or the Git remote cannot be read, which ends nothing."""
    show = partial(hours_to_push, stores.clone, Credentials(), experiment(), "t4x2", resume=False)
    assert show(anyway=False) == 0
    branch = publish(stores, 1)
    assert show(anyway=False) == estimated(stores).needed > 0  # type: ignore[union-attr]
    assert show(anyway=True) == 0
    run_git("remote", "set-url", "origin", str(stores.folder / "gone"), cwd=stores.clone)
    assert show(anyway=False) == 0
    first, second, again, last, *_ = capsys.readouterr().out.splitlines()
    assert "not known: no run like this one is published yet" in first
    assert f"(as in {branch})" in second
    assert again == second
    assert last.startswith("Duration: not known, since the published runs cannot be read")


def test_the_newest_run_of_the_kind_counts(stores: Stores) -> None:
    """100 epochs of 50 s, and 300 s until the first: 1.5 hours in one session."""
    publish(stores, 1)
    branch = publish(stores, 2, seconds=1500.0)
    found = estimated(stores)
    assert found == Estimate(epochs=100, epoch=50.0, start=300.0, branch=branch, most=11.0)
    assert str(found) == f"about 1.5 GPU hours in 1 session: 100 epochs of 50 s (as in {branch})"
    assert found.needed == pytest.approx(350 / 3600)


@pytest.mark.parametrize(
    ("wanted", "accelerator"),
    [
        ({"training__image_size": 320}, "t4x2"),
        ({"model__architecture": "yolo11n"}, "t4x2"),
        ({"hardware__multi_gpu": False}, "t4x2"),
        ({}, "p100"),
    ],
)
def test_a_run_of_another_kind_does_not_count(stores: Stores, wanted: dict[str, Any], accelerator: str) -> None:
    """Nor one outside of Kaggle, one without an epoch of its own, or one that cannot be read."""
    publish(stores, 1)
    publish(stores, 2, machine={"kaggle": False, "gpus": [{"name": "H100", "memory": 80000}]})
    publish(stores, 3, start={"epoch": 30})
    push_branch(stores, "kaggle-train-detection-exp001-20260104-000000", {"run.json": {}})
    assert estimated(stores, experiment(**wanted), accelerator) is None
    assert estimated(stores).branch.endswith("20260101-000000")  # type: ignore[union-attr]


def test_a_resumed_run_counts_its_own_epochs(stores: Stores) -> None:
    """Its time is that of its last session."""
    publish(stores, 1, epochs=30, seconds=1000.0, start={"epoch": 20})
    assert estimated(stores).epoch == 100.0  # type: ignore[union-attr]


@pytest.mark.parametrize(("md5", "times"), [(MD5, 1.0), (OTHER, 3.0)])
def test_another_dataset_is_scaled_by_its_files(stores: Stores, md5: str, times: float) -> None:
    """Twice as many files as the images of the run are the same size."""
    publish(stores, 1)
    wanted = experiment()
    pointer = stores.clone / f"{wanted.dataset}.dvc"
    pointer.parent.mkdir(parents=True)
    pointer.write_text(f"outs:\n- md5: {md5}\n  size: 3\n  nfiles: 600\n  hash: md5\n  path: detection\n")
    assert estimated(stores).epoch == 100.0 * times  # type: ignore[union-attr]


def test_what_a_checkpoint_has_is_not_trained_again(stores: Stores) -> None:
    """Except with `session.resume: never`; a long training takes several sessions, each with its start."""
    publish(stores, 1, seconds=30 * 3600.0)
    record = {
        "epoch": 70, "saved": "2026-01-02T00:00:00Z", "commit": "c" * 40, "dataset": MD5,
        "experiment": experiment().model_dump(mode="json"),
    }  # fmt: skip
    push_branch(stores, "kaggle-checkpoint-detection-exp001", {"checkpoint.json": record})
    found = estimated(stores)
    assert found is not None
    assert (found.epochs, found.sessions) == (30, 3)
    assert found.hours == pytest.approx(30 + 3 * 300 / 3600)
    again = estimated(stores, experiment(session__resume="never"))
    assert again is not None
    assert again.epochs == 100


def test_no_published_run_is_no_estimate(stores: Stores) -> None:
    """A repository begins without any."""
    assert estimated(stores) is None
