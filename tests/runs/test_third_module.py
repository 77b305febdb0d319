"""A new module takes one entry in `MODULES` and one YAML: add segmentation this way, and run it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import copy_project, run_git
from jsonschema import Draft7Validator
from ruamel.yaml import YAML

from lib.errors import DatasetError
from lib.sandbox.sheet import CELL, GUTTER, HEADER_ROWS, INK, draw_contact_sheet

NEIGHBOUR = '        Module(name="detection", number=1, short="det", task="detect"),\n'
ENTRY = '        Module(name="segmentation", number=2, short="seg", task="segment"),\n'
EXPERIMENT = """\
# yaml-language-server: $schema=schema.json
name: exp001_yolo11n_seg_baseline
module: segmentation
dataset: data/segmentation
model:
  architecture: yolo11n-seg
  pretrained: false
training:
  epochs: 1
  batch_size: 4
  learning_rate: 0.002
  nominal_batch_size: 4
  image_size: 64
hardware:
  num_workers: 0
augmentation:
  mosaic: 0.0
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the project with one more entry and one more YAML."""
    folder = tmp_path_factory.mktemp("third") / "project"
    run_git("init", "--quiet", folder, cwd=folder.parent)
    copy_project(folder)
    modules = folder / "lib/experiment/modules.py"
    text = modules.read_text(encoding="utf-8")
    assert NEIGHBOUR in text
    modules.write_text(text.replace(NEIGHBOUR, NEIGHBOUR + ENTRY), encoding="utf-8")
    (folder / "experiments/001_seg_baseline.yaml").write_text(EXPERIMENT, encoding="utf-8")
    return folder


def draw_polygons(folder: Path, *, seed: int = 0) -> Path:
    """Draw a dataset of bright polygons with four or five corners on grey."""
    from PIL import Image, ImageDraw

    generator = random.Random(seed)
    splits = {"train": 8, "val": 4, "test": 4}
    for split, count in splits.items():
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            image, lines = Image.new("RGB", (64, 64), (generator.randrange(90),) * 3), []
            for left in (4, 36):
                x, y = left + generator.randrange(4), 8 + generator.randrange(20)
                corners = [(x, y), (x + 20, y + 3), (x + 24, y + 24), (x + 10, y + 30), (x + 2, y + 20)]
                corners = corners[: generator.choice((4, 5))]
                ImageDraw.Draw(image).polygon(corners, fill=(230, 120 + generator.randrange(100), 40))
                lines.append(f"0 {' '.join(f'{value / 64:.6f}' for corner in corners for value in corner)}\n")
            image.save(folder / f"images/{split}/{number}.png")
            (folder / f"labels/{split}/{number}.txt").write_text("".join(lines), encoding="utf-8")
    named = "".join(f"{split}: images/{split}\n" for split in splits)
    (folder / "data.yaml").write_text(f"path: .\n{named}names:\n  0: damage\n", encoding="utf-8")
    return folder


def run(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the project in its folder."""
    return subprocess.run([sys.executable, *arguments], cwd=project, capture_output=True, text=True, timeout=300)


def test_the_updated_schema_accepts_its_yaml(project: Path) -> None:
    """`python -m lib schema` adds the new name, so that editors complete it."""
    experiment = YAML(typ="safe", pure=True).load(EXPERIMENT)
    file = project / "experiments/schema.json"
    assert list(Draft7Validator(json.loads(file.read_text())).iter_errors(experiment))
    assert run(project, "-m", "lib", "schema").stdout == f"{file}\n"
    assert not list(Draft7Validator(json.loads(file.read_text())).iter_errors(experiment))


def test_a_module_without_a_drawing_asks_for_a_dataset(project: Path) -> None:
    """No dataset can be drawn for it; the error names `--data DIR`."""
    done = run(project, "render.py", "segmentation", "--run")
    assert done.returncode == 1
    assert "there is no drawn dataset for segmentation" in done.stderr
    assert "--data DIR" in done.stderr


def test_its_labels_are_checked_as_outlines(project: Path, tmp_path: Path) -> None:
    """A box is refused, and so are keypoints, which ultralytics would read instead of outlines."""
    data = draw_polygons(tmp_path / "data")
    script = (
        "import sys; from pathlib import Path\n"
        "from lib.data.dataset import check_dataset; from lib.errors import RunError\n"
        "from lib.experiment.load import load_experiment; folder, scratch = map(Path, sys.argv[1:])\n"
        "try: print(check_dataset(folder, load_experiment('experiments/001_seg_baseline.yaml'), scratch, md5=''))\n"
        "except RunError as error: print(error)"
    )
    checked = run(project, "-c", script, str(data), str(tmp_path / "scratch"))
    assert "polygons=True" in checked.stdout, checked.stderr
    with (data / "labels/train/0.txt").open("a", encoding="utf-8") as label:
        label.write("0 0.5 0.5 0.2 0.2\n")
    with (data / "data.yaml").open("a", encoding="utf-8") as description:
        description.write("kpt_shape: [4, 3]\n")
    checked = run(project, "-c", script, str(data), str(tmp_path / "scratch"))
    assert "labels/train/0.txt:3: 5 columns, not 7 or more, an odd number" in checked.stdout
    assert "kpt_shape is [4, 3]: segmentation has outlines and no keypoints; leave it out" in checked.stdout


def test_the_sheet_of_a_dataset_shows_outlines(tmp_path: Path) -> None:
    """Outlines are drawn in white along the polygon; an error names the file of a line that is not a polygon."""
    from PIL import Image

    data = draw_polygons(tmp_path / "data")
    draw_contact_sheet(data, tmp_path / "sheet.png", per_split=1)
    with Image.open(tmp_path / "sheet.png") as sheet:
        cell = sheet.crop((GUTTER, HEADER_ROWS + 26, GUTTER + CELL, HEADER_ROWS + 26 + CELL))
        x, y, *_ = map(float, (data / "labels/train/0.txt").read_text().split()[1:])
        assert cell.getpixel((round(x * CELL), round(y * CELL))) == INK
    (data / "labels/train/0.txt").write_text("0 0.1 0.1 0.5 0.2 0.3 0.6 0.7\n")
    with pytest.raises(DatasetError, match=r"0\.txt holds a row that is no label"):
        draw_contact_sheet(data, tmp_path / "sheet.png")


@pytest.mark.slow
def test_a_third_module_runs_from_end_to_end(project: Path, tmp_path: Path) -> None:
    """Segmentation is rendered, trained, evaluated and published, with metrics of boxes and masks."""
    data = draw_polygons(tmp_path / "data")
    done = run(project, "render.py", "segmentation", "--run", "--data", str(data), "--sandbox", str(tmp_path / "s"))
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    assert (project / "build/segmentation/train_module_2_segmentation.ipynb").is_file()
    origin = tmp_path / "s/origin.git"
    (ref,) = run_git("for-each-ref", "--format=%(refname)", "refs/heads/kaggle-train-*", cwd=origin).splitlines()
    assert ref.startswith("refs/heads/kaggle-train-segmentation-exp001-yolo11n-seg-baseline-")
    folder = f"{ref}:artifacts/segmentation/exp001_yolo11n_seg_baseline"
    metrics = json.loads(run_git("show", f"{folder}/train/metrics.json", cwd=origin))
    for split in ("validation", "test"):
        assert set(metrics[split]) == {"images", "box", "mask"}
        assert set(metrics[split]["mask"]) == {"precision", "recall", "mAP50", "mAP50-95"}
    card = run_git("show", f"{folder}/README.md", cwd=origin)
    assert "# Module 2: Segmentation: exp001_yolo11n_seg_baseline" in card
    assert "| test | mask | 4 |" in card
    predictions = json.loads(run_git("show", f"{folder}/test/predictions.json", cwd=origin))
    assert {item["file_name"] for item in predictions} <= {f"images/test/{number}.png" for number in range(4)}
    assert all(item["segmentation"]["size"] == [64, 64] for item in predictions)
    pointer = run_git("show", f"{folder}/train/weights/best.pt.dvc", cwd=origin)
    md5 = pointer.partition("md5: ")[2].split()[0]
    assert (tmp_path / f"s/dvc-remote/files/md5/{md5[:2]}/{md5[2:]}").is_file()
