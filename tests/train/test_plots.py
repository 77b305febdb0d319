"""A plot of ultralytics that fails costs that plot alone, and every class name can be drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lib.train.plots import guarded_plots

NAMES = {0: "$\\frac$", 1: "_hidden", 2: "a\nb"}


def draw_all(folder: Path, names: dict[int, str]) -> None:
    """Draw a plot of each kind as a training does."""
    from ultralytics.models import yolo
    from ultralytics.utils import metrics

    train: Any = yolo.detect.train
    val: Any = yolo.detect.val
    axis, curves = np.linspace(0, 1, 1000), np.ones((len(names), 1000))
    metrics.plot_pr_curve(axis, list(curves), np.ones((len(names), 10)), folder / "PR.png", names)
    metrics.plot_mc_curve(axis, curves, folder / "F1.png", names, ylabel="F1")
    metrics.ConfusionMatrix(names=names).plot(save_dir=str(folder))
    boxes, classes = np.full((3, 4), 0.5), np.arange(3.0)
    train.plot_labels(boxes, classes, names=names, save_dir=folder)
    labels: dict[str, Any] = {"bboxes": boxes, "cls": classes, "batch_idx": np.zeros(3)}
    val.plot_images(labels, np.zeros((1, 3, 64, 64)), fname=folder / "val.jpg", names=names)


def test_every_class_name_is_drawn_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A formula that matplotlib cannot read, a name that a legend hides, a line feed: all are in the legend."""
    from matplotlib.axes import Axes

    legends: list[list[str]] = []
    drawn: Any = Axes.legend

    def legend(axes: Any, *args: Any, **given: Any) -> Any:
        made = drawn(axes, *args, **given)
        legends.append([text.get_text().strip() for text in made.get_texts()])
        return made

    monkeypatch.setattr(Axes, "legend", legend)
    failed: list[str] = []
    with guarded_plots(lambda what, error: failed.append(f"{what}: {error}")):
        draw_all(tmp_path, NAMES)
    assert failed == []
    assert {"PR.png", "F1.png", "labels.jpg", "val.jpg"} <= {path.name for path in tmp_path.iterdir()}
    for texts in legends[:2]:
        assert [text.removesuffix(" 1.000") for text in texts[:3]] == ["$\\frac$", "_hidden", "a\\nb"]


def test_a_plot_that_fails_is_named_and_the_others_are_drawn(tmp_path: Path) -> None:
    """Each file that cannot be written has its warning; the library's own functions are back afterwards."""
    from ultralytics.utils import metrics

    (tmp_path / "PR.png").mkdir()
    (tmp_path / "labels.jpg").mkdir()
    before, failed = metrics.plot_pr_curve, list[str]()
    with guarded_plots(lambda what, error: failed.append(f"{what}: {error}")):
        draw_all(tmp_path, NAMES)
    assert [line.partition(":")[0] for line in failed] == ["drawing PR.png", "drawing labels.jpg"]
    assert (tmp_path / "F1.png").is_file()
    assert (tmp_path / "val.jpg").is_file()
    assert metrics.plot_pr_curve is before
