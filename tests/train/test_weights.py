"""What a training starts from is read, and compared with what will be trained, before anything costs time."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from lib.data.dataset import Dataset
from lib.errors import WeightsError
from lib.experiment.load import load_experiment
from lib.session import Session
from lib.train.preflight import _check_weights
from lib.train.weights import fetch_weights

DOORS = {0: "door", 1: "seal"}


@cache
def network(architecture: str, channels: int = 3) -> Any:
    """Return an untrained network of the two classes."""
    from ultralytics.nn.tasks import DetectionModel, PoseModel

    if architecture.endswith("-pose"):
        return PoseModel(f"{architecture}.yaml", nc=2, ch=channels, data_kpt_shape=(4, 3), verbose=False)
    return DetectionModel(f"{architecture}.yaml", nc=2, ch=channels, verbose=False)


def save(
    file: Path, architecture: str = "yolo11n", *, names: Mapping[int, str] = DOORS, channels: int = 3, epoch: int = 1
) -> None:
    """Write a checkpoint as ultralytics does in the middle of a training."""
    import torch

    model = network(architecture, channels)
    model.names, model.task = dict(names), "pose" if architecture.endswith("-pose") else "detect"
    rows = {"epoch": [*range(1, epoch + 2)], "time": [1.0] * (epoch + 1)}
    content = {"model": None, "ema": model, "epoch": epoch, "optimizer": {}, "train_args": {"task": model.task}}
    torch.save({**content, "train_results": rows, "train_metrics": {"fitness": 0.5}}, file)


def save_nan(file: Path) -> None:
    """Write weights of a training that diverged."""
    import torch

    model = network("yolo11n", 2)
    model.model[0].conv.weight.data.fill_(float("nan"))
    torch.save({"model": model, "train_args": {"task": "detect"}}, file)


def save_state(file: Path) -> None:
    """Write weights without a network."""
    import torch

    torch.save(network("yolo11n").state_dict(), file)


def save_other(file: Path) -> None:
    """Write a network that ultralytics has not made."""
    import torch

    torch.save({"model": torch.nn.Sequential(torch.nn.Linear(2, 2))}, file)


def cut(file: Path) -> None:
    """Write a checkpoint whose copy was interrupted."""
    save(file)
    file.write_bytes(file.read_bytes()[:-1000])


def zipped(file: Path) -> None:
    """Write an archive of something else."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("best.pt", "weights")


UNUSABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "HTML page": (lambda file: file.write_text("\n<!DOCTYPE html><html>"), "a web page"),
    "JSON": (lambda file: file.write_text('{"message": "Not Found"}'), "a JSON text"),
    "empty": (Path.touch, "it is empty"),
    "cut": (cut, "it was cut off"),
    "LFS pointer": (
        lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\n"),
        "a pointer of Git LFS",
    ),
    "DVC pointer": (lambda file: file.write_text("outs:\n- md5: 0\n"), "the .dvc file"),
    "text": (lambda file: file.write_text("weights"), "not a checkpoint"),
    "other archive": (zipped, "not a checkpoint"),
    "bare state dict": (save_state, "a bare state dict"),
    "another network": (save_other, "but holds a Sequential"),
    "NaN": (save_nan, "NaN"),
    "another size": (lambda file: save(file, "yolo11s"), "it is of yolo11s"),
}


def session(folder: Path, module: str = "det", **model: object) -> Session:
    """Return a session of a module's small experiment with other values of `model`."""
    values = {f"model.{key}": value for key, value in model.items()} | {"model.architecture": "yolo11n"}
    if module == "loc":
        values["model.architecture"] = "yolo11n-pose"
    return Session(folder, folder, folder, load_experiment(ROOT / f"experiments/000_{module}_sandbox.yaml", values))


def dataset(folder: Path, names: dict[int, str], channels: int = 3) -> Dataset:
    """Return a checked dataset of these classes and channels."""
    return Dataset(folder, folder / "data.yaml", "0" * 32, {"train": 1}, names, channels=channels)


@pytest.mark.parametrize("key", ["pretrained", "resume_from"])
@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_file_that_training_cannot_start_from_is_an_error_in_preflight(tmp_path: Path, key: str, kind: str) -> None:
    """The error names the key, the value and what the file is."""
    write, reason = UNUSABLE[kind]
    file = tmp_path / "given.pt"
    write(file)
    with pytest.raises(WeightsError) as caught:
        list(_check_weights(session(tmp_path, **{key: str(file)})))
    assert f"model.{key} is '{file}'" in caught.value.what
    assert reason in caught.value.what


@pytest.mark.parametrize(
    ("names", "channels", "reason"),
    [
        ({0: "seal", 1: "door"}, 3, "its classes are 2 (0 door, 1 seal), the dataset's are 2 (0 seal, 1 door)"),
        ({0: "door"}, 3, "the dataset's are 1 (0 door)"),
        ({0: "door", 1: "lock"}, 3, "1 lock"),
        (DOORS, 1, "images of 3 channels, data.yaml has channels: 1"),
    ],
)
@pytest.mark.parametrize("own", [False, True])
def test_a_checkpoint_of_another_dataset_is_not_resumed(
    tmp_path: Path, names: dict[int, str], channels: int, reason: str, *, own: bool
) -> None:
    """Neither a given checkpoint nor that of an earlier session; with its own dataset each is resumed."""
    file = tmp_path / "last.pt"
    save(file)
    resumed, checkpoint = (session(tmp_path), file) if own else (session(tmp_path, resume_from=str(file)), None)
    assert fetch_weights(resumed, checkpoint, dataset(tmp_path, DOORS)).epoch == 2
    with pytest.raises(WeightsError) as caught:
        fetch_weights(resumed, checkpoint, dataset(tmp_path, names, channels))
    assert reason in caught.value.what


def test_a_model_of_imagenet_codes_is_resumed(tmp_path: Path) -> None:
    """Training gives the model the names for which the dataset has ImageNet's codes."""
    file = tmp_path / "last.pt"
    save(file, names={0: "tench", 1: "goldfish"})
    codes = dataset(tmp_path, {0: "n01440764", 1: "n01443537"})
    assert fetch_weights(session(tmp_path, resume_from=str(file)), None, codes).epoch == 2


def test_weights_of_another_task_are_a_warning_and_a_checkpoint_of_it_an_error(tmp_path: Path) -> None:
    """The layers of detection weights that fit are used for a pose; a training is not resumed with another head."""
    file = tmp_path / "best.pt"
    save(file)
    (line,) = _check_weights(session(tmp_path, "loc", pretrained=str(file)))
    assert line.state == "warning"
    assert "It is of yolo11n (detect)" in line.found
    with pytest.raises(WeightsError, match=r"it is of yolo11n \(detect\), the experiment is of yolo11n-pose \(pose\)"):
        list(_check_weights(session(tmp_path, "loc", resume_from=str(file))))


def test_weights_whose_classes_have_another_order_are_remarked(tmp_path: Path) -> None:
    """New weights may have other classes; the same ones in another order are probably a mistake."""
    file = tmp_path / "best.pt"
    save(file)
    given = session(tmp_path, pretrained=str(file))
    assert fetch_weights(given, None, dataset(tmp_path, DOORS)).note == ""
    assert fetch_weights(given, None, dataset(tmp_path, {0: "cat"})).note == ""
    assert "another order" in fetch_weights(given, None, dataset(tmp_path, {0: "seal", 1: "door"})).note
