"""An exported model predicts the same as its weights; a failed export is reported as missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, write_tiny_model

from lib.experiment.load import load_experiment
from lib.session import Session
from lib.train.export import check_same, export
from lib.train.launch import Trained

SIZE = 64


def trained(folder: Path, weights: Path | None = None) -> Trained:
    """Return a training with a copy of these weights as `best.pt`; without any, with a torn file."""
    best = folder / "train/weights/best.pt"
    best.parent.mkdir(parents=True)
    best.write_bytes(weights.read_bytes() if weights else b"torn")
    return Trained(folder / "train", best, best.with_name("last.pt"), 1.0)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return weights that export in seconds."""
    return write_tiny_model(tmp_path_factory.mktemp("weights") / "tiny.pt")


def session_for(tmp_path: Path, *formats: str) -> Session:
    """Return a session whose experiment requests these export formats."""
    values = {"export": list(formats), "training.image_size": SIZE}
    experiment = load_experiment(ROOT / "experiments/001_loc_baseline.yaml", values)
    return Session(ROOT, tmp_path, tmp_path, experiment)


@pytest.mark.parametrize("export_format", ["onnx", pytest.param("torchscript", marks=pytest.mark.slow)])
def test_an_exported_model_is_next_to_the_weights_and_predicts_the_same(
    tiny: Path, tmp_path: Path, export_format: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The model runs in its format's runtime, without this project or ultralytics; no other file is left behind."""
    run = trained(tmp_path, tiny)
    exported = export(session_for(tmp_path, export_format), run)
    assert exported.missing is None
    (file,) = exported.files
    assert sorted(path.name for path in run.best.parent.iterdir()) == sorted(["best.pt", f"best.{export_format}"])
    assert f"Exported: best.{export_format}, " in capfd.readouterr().out
    image = np.random.default_rng(1).random((1, 3, SIZE, SIZE), dtype=np.float32)
    if export_format == "onnx":
        import onnxruntime

        (predicted,) = onnxruntime.InferenceSession(file).run(None, {"images": image})
    else:
        scripted: Any = torch.jit
        predicted = scripted.load(file)(torch.from_numpy(image)).numpy()
    model = torch.load(tiny, weights_only=False)["model"].eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(image))[0].numpy()
    assert predicted == pytest.approx(expected, abs=0.01)
    other = write_tiny_model(tmp_path / "other.pt", seed=1)
    with pytest.raises(SystemExit, match="predicts something else"):
        check_same(str(other), str(file), SIZE)


def test_a_model_of_grey_images_is_exported(tmp_path: Path) -> None:
    """The self-test asks with the model's own number of channels."""
    grey = write_tiny_model(tmp_path / "grey.pt", channels=1)
    exported = export(session_for(tmp_path, "onnx"), trained(tmp_path, grey))
    assert exported.missing is None
    import onnxruntime

    (given,) = onnxruntime.InferenceSession(exported.files[0]).get_inputs()
    assert given.shape == [1, 1, SIZE, SIZE]


def test_a_failed_export_is_missing_and_the_weights_are_kept(tmp_path: Path) -> None:
    """The format and the cause are reported; an older export of other weights is not mistaken for this one."""
    run = trained(tmp_path)
    run.best.with_suffix(".onnx").write_bytes(b"of other weights")
    exported = export(session_for(tmp_path, "onnx"), run)
    assert exported.files == ()
    assert exported.missing is not None
    assert "could not be exported to onnx (" in exported.missing.what
    assert [path.name for path in run.best.parent.iterdir()] == ["best.pt"]
    assert run.best.read_bytes() == b"torn"


def test_without_a_format_nothing_is_exported(tmp_path: Path) -> None:
    """By default no format is exported."""
    exported = export(session_for(tmp_path), trained(tmp_path))
    assert (exported.files, exported.missing) == ((), None)
