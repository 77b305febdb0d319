"""A published run can be fetched completely, used for predictions, and compared with other runs."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import s3_emulator
from click.testing import CliRunner, Result
from conftest import ROOT, RUN, WEIGHTS, Stores, make_stores, run_git, write_run, write_tiny_model
from PIL import Image

from lib.cli.app import app
from lib.errors import BranchError, PredictionError, RunError
from lib.experiment.load import load_experiment
from lib.remotes.credentials import Credentials
from lib.results.fetch import Model, fetch_model
from lib.results.predict import predict
from lib.sync import Publication, sync_outputs

OLDER, NEWER = (f"kaggle-train-detection-exp001-2025010{day}-030405" for day in (2, 3))
SIZE = 64  # pixels that the model takes
RESULTS = "epoch,time,train/box_loss,metrics/mAP50(B),lr/pg0\n1,2.5,1.5,0.25,0.01\n2,5.0,{},0.75,0.01\n"


def publish(stores: Stores, branch: str, weights: Path | None = None, learning_rate: float = 0.001) -> Path:
    """Publish a run with the files that these tests need, from a separate clone; return its artifacts' folder."""
    clone = stores.clone_again(f"machine-{branch}")
    write_run(clone, seed=int(branch[-8]))
    folder = clone / RUN
    if weights is not None:
        (folder / "train/weights/best.pt").write_bytes(weights.read_bytes())
    given = {"name": "exp001", "training.image_size": SIZE, "training.learning_rate": learning_rate}
    experiment = load_experiment(ROOT / "experiments/001_det_baseline.yaml", given).model_dump(mode="json")
    commit = run_git("rev-parse", "HEAD", cwd=clone)
    run = {
        "branch": branch, "commit": commit, "experiment": experiment, "state": "finished",
        "dataset": {"path": "data/detection", "md5": f"{branch[-8]}" * 32 + ".dir"},
        "versions": {"torch": "2.6.0"}, "machine": {"gpus": [{"name": "Tesla T4", "memory": 16}] * 2, "device": "0,1"},
    }  # fmt: skip
    metrics = {"schema": 2, "epochs": 2, "best_epoch": 2, "test": {"images": 3, "box": {"mAP50": 0.5, "recall": 0.25}}}
    chance = np.random.default_rng(0)
    Image.fromarray(chance.integers(0, 255, (200, 200, 3), dtype=np.uint8)).save(folder / "train/results.png")
    (folder / "train/results.csv").write_text(RESULTS.format(branch[-8]))
    (folder / "train/metrics.json").write_text(json.dumps(metrics))
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "README.md").write_text("# A card\r\n")
    stamp = datetime.strptime(branch[-15:], "%Y%m%d-%H%M%S").replace(tzinfo=UTC)
    sync_outputs(Publication(clone, branch, "a run", RUN, WEIGHTS, stamp), say=str, progress=False)
    return folder


@dataclass(frozen=True)
class Published:
    """Two finished runs of one experiment on the remotes, and the folders that they published."""

    stores: Stores
    older: Path
    newer: Path

    def user(self, folder: Path) -> Path:
        """Return a user's clone, which looks like a checkout of this project."""
        clone = folder / "user"
        run_git("clone", "--quiet", "--branch", "main", self.stores.origin, clone, cwd=folder)
        for name in ("render.py", "uv.lock"):
            (clone / name).touch()
        return clone


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """Publish two runs that differ in their learning rate, the newer one with a model that predicts."""
    folder = tmp_path_factory.mktemp("published")
    stores, weights = make_stores(folder), write_tiny_model(folder / "tiny.pt")
    older = publish(stores, OLDER, learning_rate=0.5)
    return Published(stores, older, publish(stores, NEWER, weights))


@pytest.fixture
def user(published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change into a user's clone and return it."""
    clone = published.user(tmp_path)
    monkeypatch.chdir(clone)
    return clone


@pytest.fixture(scope="module")
def model(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Return the newer run, fetched."""
    return fetch_model(published.user(tmp_path_factory.mktemp("fetched")), NEWER, Credentials())


def command(*words: str | Path) -> Result:
    """Run a command of `python -m lib` in the current folder."""
    return CliRunner().invoke(app, [str(word) for word in words])


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder, by path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same_run(fetched: Path, made: Path) -> bool:
    """Return whether a fetched folder is what a run made, plus the four files that the publication adds for DVC."""
    added = {"train/weights/best.pt.dvc", "train/weights/last.pt.dvc", "train/weights/.gitignore", ".gitattributes"}
    found = contents(fetched)
    return added == found.keys() - contents(made).keys() and contents(made).items() <= found.items()


# ── fetch ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_fetch_downloads_every_published_file_and_keeps_the_checkout(published: Published, user: Path) -> None:
    """Byte for byte, with weights and images that Git ignores; no ref, index or file of the checkout changes."""
    (user / "code.py").write_text("being edited\n")
    run_git("add", "code.py", cwd=user)
    commands = (("for-each-ref",), ("status", "--porcelain=v2", "--branch"), ("stash", "list"), ("branch", "-a"))
    before = [run_git(*words, cwd=user) for words in commands], (user / ".git/index").read_bytes()
    done = command("fetch", f"origin/{NEWER}", "--output", user.parent / "model")
    assert done.exit_code == 0, done.output
    assert same_run(user.parent / "model", published.newer)
    assert "train/weights/best.pt" in done.output
    assert ([run_git(*words, cwd=user) for words in commands], (user / ".git/index").read_bytes()) == before


def test_a_fetched_run_is_found_again_without_the_remotes(
    published: Published, user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in `build/models/BRANCH` of the checkout, also for a command in a subfolder; no remote is read again."""
    (user / "inside").mkdir()
    monkeypatch.chdir(user / "inside")
    assert command("fetch", OLDER).exit_code == 0
    folder = user / "build/models" / OLDER
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    run_git("remote", "set-url", "origin", user.parent / "nowhere", cwd=user)
    assert command("fetch", OLDER).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times
    assert [path.name for path in folder.parent.iterdir()] == [OLDER]


@pytest.mark.parametrize("harm", ["gone", "damaged"])
def test_a_failed_fetch_of_the_weights_leaves_no_folder(stores: Stores, harm: str) -> None:
    """The DVC remote has lost an object, or holds other bytes; once it is repaired, the same fetch succeeds."""
    made = publish(stores, OLDER)
    best = (made / "train/weights/best.pt").read_bytes()
    (victim,) = [name for name, content in stores.objects().items() if content == best]
    path = stores.storage / victim
    good = path.read_bytes()
    path.chmod(0o644)
    path.unlink() if harm == "gone" else path.write_bytes(b"x" * len(good))
    user, folder = stores.clone_again(), stores.folder / "models"
    with pytest.raises(BranchError, match="`dvc pull` of kaggle-train-detection-exp001"):
        fetch_model(user, OLDER, Credentials(), folder / "one")
    assert list(folder.iterdir()) == []
    path.write_bytes(good)
    assert same_run(fetch_model(user, OLDER, Credentials(), folder / "one").folder, made)


def test_an_object_with_other_bytes_on_s3_is_refused_and_not_cached(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC would cache what S3 returns without a check; once the object is repaired, the same fetch succeeds."""
    for name, value in s3_emulator.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with s3_emulator.S3Emulator() as s3:
        s3.make_bucket("bucket")
        s3.configure_clone(stores.clone, "bucket")
        run_git("commit", "--quiet", "--all", "--message=the remote", cwd=stores.clone)
        run_git("push", "--quiet", "origin", "HEAD:main", cwd=stores.clone)
        made = publish(stores, OLDER)
        best = (made / "train/weights/best.pt").read_bytes()
        (key,) = [name for name, content in s3.files("bucket").items() if content == best]
        s3.client().put_object(Bucket="bucket", Key=key, Body=b"x" * len(best))
        user, folder = stores.clone_again(), stores.folder / "model"
        with pytest.raises(BranchError, match="`dvc pull` of kaggle-train-detection-exp001"):
            fetch_model(user, OLDER, Credentials(), folder)
        assert not folder.exists()
        s3.client().put_object(Bucket="bucket", Key=key, Body=best)
        assert same_run(fetch_model(user, OLDER, Credentials(), folder).folder, made)


def test_a_folder_with_other_content_is_refused_and_unchanged(user: Path, model: Model) -> None:
    """The user's own files, another run's model, or weights that differ from those of the run."""
    (user / "mine").mkdir()
    (user / "mine/notes.txt").write_text("mine")
    for folder, message in ((user / "mine", "it is not a fetched model"), (model.folder, f"it holds {NEWER}")):
        before = contents(folder)
        with pytest.raises(BranchError, match=message):
            fetch_model(user, OLDER, Credentials(), folder)
        assert contents(folder) == before
    own = fetch_model(user, OLDER, Credentials()).best
    own.write_bytes(b"trained on")
    with pytest.raises(BranchError, match=r"train/weights/best\.pt is damaged"):
        fetch_model(user, OLDER, Credentials())
    assert own.read_bytes() == b"trained on"


def test_fetch_without_a_branch_and_a_terminal_lists_the_newest_runs(user: Path) -> None:
    """The error's remedy names the branches that may be given."""
    raised = command("fetch").exception
    assert isinstance(raised, BranchError)
    assert raised.remedy == f"name one; the newest are:\n  {NEWER}\n  {OLDER}"


def test_fetch_without_a_branch_at_a_terminal_asks_for_one(user: Path) -> None:
    """It prints a numbered list, newest first; the second run is selected and fetched."""
    ours, theirs = pty.openpty()
    os.write(ours, b"2\n")
    words = [sys.executable, "-m", "lib", "fetch"]
    done = subprocess.run(words, stdin=theirs, cwd=user, env=environment(), capture_output=True, text=True)
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 0, done.stderr
    assert f"  1  {NEWER}\n  2  {OLDER}\n" in done.stdout
    assert (user / "build/models" / OLDER / "train/weights/best.pt").is_file()


def environment() -> dict[str, str]:
    """Return the environment in which a command runs this project's code in another clone."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_the_shell_completes_branches(user: Path) -> None:
    """In a real bash: the branches with the typed prefix; none, and no error, without a remote."""
    script = (
        'lib() { "$PYTHON" -m lib "$@"; }\n'
        '_lib() { COMPREPLY=($(COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD _LIB_COMPLETE=bash_complete lib |'
        " cut -d, -f2)); }\n"
        'COMP_WORDS=(lib fetch kaggle-train-detection-exp001-20250103); COMP_CWORD=2; _lib; echo "${COMPREPLY[@]}"\n'
        'git remote remove origin; _lib; echo "${#COMPREPLY[@]}"'
    )
    env = {**environment(), "PYTHON": sys.executable}
    done = subprocess.run(["bash", "-c", script], cwd=user, env=env, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{NEWER}\n0\n", "")


# ── predict ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def draw(path: Path, size: tuple[int, int] = (90, 60)) -> Path:
    """Write an image of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def test_predictions_equal_those_of_ultralytics(model: Model, tmp_path: Path) -> None:
    """Boxes, confidence and corners, from the requested confidence on; printed on one line and drawn into an image."""
    from ultralytics.models import YOLO

    image = draw(tmp_path / "a.png")
    (found,) = predict(model, [image], tmp_path / "out", confidence=0.4, device="cpu")
    yolo: Any = YOLO(str(model.best))
    (wanted,) = yolo.predict(str(image), imgsz=SIZE, conf=0.4, device="cpu", verbose=False)
    assert len(found.detections) == len(wanted.boxes) > 0
    for detection, box, score, corners in zip(
        found.detections,
        wanted.boxes.xyxy.numpy(),
        wanted.boxes.conf.tolist(),
        wanted.keypoints.data.numpy(),
        strict=True,
    ):
        assert detection.box == pytest.approx(box, abs=0.1)
        assert detection.score == pytest.approx(score, abs=0.001)
        assert detection.corners == pytest.approx(corners, abs=0.1)
    first, (x, y, _) = found.detections[0], found.detections[0].corners[0]
    assert str(found).startswith(f"{image}: container_id {first.score:.2f} box {first.box[0]:.0f} ")
    assert f" corners {x:.1f},{y:.1f} " in str(found)
    assert "\n" not in str(found)
    assert found.drawn == tmp_path / "out/a.jpg"
    with Image.open(found.drawn) as drawn, Image.open(image) as plain:
        assert drawn.size == plain.size
        assert np.abs(np.asarray(drawn, dtype=int) - np.asarray(plain, dtype=int)).mean() > 5


def variants(folder: Path) -> list[Path]:
    """Write the same image in forms that training reads alike."""
    draw(folder / "plain.png")
    with Image.open(folder / "plain.png") as plain:
        pixels = np.asarray(plain.convert("L"))
    Image.fromarray(pixels).save(folder / "plain.png")
    Image.fromarray(pixels.astype(np.uint16) * 257).save(folder / "deep.png")
    Image.fromarray(pixels.astype(np.uint16) * 257).save(folder / "deep.tif")
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90).save(folder / "turned.tif", exif=exif)
    Image.fromarray(pixels).save(folder / "damaged.png", exif=exif.tobytes()[:-9])
    Image.fromarray(np.dstack([pixels, pixels // 2])).save(folder / "alpha.png")
    return sorted(folder.iterdir())


def test_predictions_do_not_depend_on_depth_orientation_or_metadata(model: Model, tmp_path: Path) -> None:
    """16 bits, an orientation, damaged EXIF data and an alpha channel are read, and drawn, as training reads them."""
    (tmp_path / "in").mkdir()
    predicted = predict(model, variants(tmp_path / "in"), tmp_path, confidence=0.4, device="cpu")
    done = {each.image.name: each for each in predicted}
    plain = done["plain.png"]
    assert plain.detections
    for each in done.values():
        assert str(each).partition(": ")[2] == str(plain).partition(": ")[2]
        assert each.drawn is not None
        assert plain.drawn is not None
        assert each.drawn.read_bytes() == plain.drawn.read_bytes()


def test_a_model_of_grey_images_is_given_grey_images(model: Model, tmp_path: Path) -> None:
    """The image is read with the number of channels that the model was trained with."""
    from ultralytics.models import YOLO

    image, grey = draw(tmp_path / "a.png"), replace(model, folder=tmp_path / "run")
    grey.best.parent.mkdir(parents=True)
    write_tiny_model(grey.best, channels=1)
    (found,) = predict(grey, [image], tmp_path / "out", confidence=0.4, device="cpu")
    yolo: Any = YOLO(str(grey.best))
    (wanted,) = yolo.predict(str(image), imgsz=SIZE, conf=0.4, device="cpu", verbose=False)
    assert [each.score for each in found.detections] == pytest.approx(wanted.boxes.conf.tolist(), abs=0.001)
    assert found.detections


def test_an_image_that_training_could_not_read_is_named(model: Model, tmp_path: Path) -> None:
    """A TIFF of floating-point numbers, and half a BMP, are reported with the reason; the next image is predicted."""
    Image.fromarray(np.ones((40, 40), np.float32)).save(tmp_path / "a.tif")
    draw(tmp_path / "b.bmp")
    (tmp_path / "b.bmp").write_bytes((tmp_path / "b.bmp").read_bytes()[:3000])
    draw(tmp_path / "c.png")
    done = list(predict(model, [tmp_path], tmp_path / "out", confidence=0.4, device="cpu"))
    assert [each.problem for each in done] == ["it cannot be read (OpenCV cannot decode it)"] * 2 + [""]
    assert done[2].detections


def test_predict_accepts_folders_and_a_broken_image_does_not_stop_the_others(model: Model, user: Path) -> None:
    """Two images of the same name are both drawn; the broken one is reported, and the command exits with 1."""
    draw(user / "in/one/a.png")
    draw(user / "in/two/a.png")
    draw(user / "b.png")
    (user / "in/broken.jpg").write_bytes(b"no image")
    (user / "in/notes.txt").touch()
    (user / "build/models").mkdir(parents=True)
    model_here = user / "build/models" / NEWER
    model_here.symlink_to(model.folder)
    done = command("predict", NEWER, "in", "in/one", "in/two", "b.png", "--confidence", "1")
    assert done.exit_code == 1
    assert "in/broken.jpg: it cannot be read" in done.output
    assert "in/one/a.png: nothing was found" in done.output
    drawn = user / "build/predictions" / NEWER
    assert sorted(contents(drawn)) == ["b.jpg", "one/a.jpg", "two/a.jpg"]
    assert command("predict", NEWER, "b.png", "--confidence", "1").exit_code == 0


def test_images_of_the_same_name_are_all_drawn(model: Model, tmp_path: Path) -> None:
    """From two folders into one."""
    images = [draw(tmp_path / place / "a.png") for place in ("one", "two")]
    done = list(predict(model, images, tmp_path / "out", confidence=1.0, device="cpu"))
    assert [each.drawn for each in done] == [tmp_path / "out/a.jpg", tmp_path / "out/a-2.jpg"]


@pytest.mark.parametrize(
    ("given", "output", "device", "message"),
    [
        ("nowhere.png", "out", "cpu", "nowhere.png: there is no such file"),
        ("notes.txt", "out", "cpu", "notes.txt: this is not an image"),
        ("empty", "out", "cpu", "empty: this folder holds no image"),
        ("own.jpg", ".", "cpu", "would overwrite .*own.jpg"),
        ("own.jpg", "out", "77", "--device is '77'"),
    ],
)
def test_an_invalid_input_is_reported_before_anything_is_drawn(
    model: Model, tmp_path: Path, given: str, output: str, device: str, message: str
) -> None:
    """The error names the path or the device; no image is changed."""
    (tmp_path / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    draw(tmp_path / "own.jpg")
    before = contents(tmp_path)
    with pytest.raises(PredictionError, match=message):
        list(predict(model, [tmp_path / given], tmp_path / output, confidence=0.5, device=device))
    assert contents(tmp_path) == before


# ── compare ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_compare_shows_metrics_differences_and_curves(published: Published, user: Path) -> None:
    """Only inputs that differ are listed, the curves are drawn into a PNG, and the DVC remote is not needed."""
    hidden = published.stores.storage.rename(published.stores.folder / "hidden")
    try:
        printed = json.loads(command("compare", OLDER, NEWER, "--json").stdout)
        shown = command("compare", OLDER, NEWER).stdout
    finally:
        hidden.rename(published.stores.storage)
    assert [run["branch"] for run in printed["runs"]] == [OLDER, NEWER]
    assert printed["runs"][0]["metrics"] == {
        "epochs": 2, "best_epoch": 2, "test/box/mAP50": 0.5, "test/box/recall": 0.25,
    }  # fmt: skip
    assert printed["differences"] == {
        "training.learning_rate": [0.5, 0.001],
        "dataset.md5": ["2" * 32 + ".dir", "3" * 32 + ".dir"],
    }
    assert "test/box/mAP50" in shown
    assert "training.learning_rate" in shown
    assert "training.epochs" not in shown
    with Image.open(user / "build/compare.png") as image:
        assert image.format == "PNG"
    assert run_git("status", "--porcelain", "--untracked-files=no", cwd=user) == ""


def test_compare_without_a_branch_takes_the_newest_runs_of_the_last_experiment(
    stores: Stores, monkeypatch: Any
) -> None:
    """Runs of other experiments are left out; if there are fewer than two, the error lists the branches."""
    monkeypatch.chdir(stores.clone)
    assert "no run is published" in str(command("compare").exception)
    publish(stores, OLDER)
    raised = command("compare").exception
    assert isinstance(raised, RunError)
    assert OLDER in raised.remedy
    publish(stores, NEWER)
    publish(stores, "kaggle-train-detection-exp009-20240103-030405")
    shown = command("compare")
    assert shown.stdout.startswith(f"1  {NEWER} (finished)\n2  {OLDER} (finished)\n\n"), shown.output
    with pytest.raises(BranchError, match="no branch 'main'"):
        CliRunner().invoke(app, ["compare", "main"], catch_exceptions=False)


def test_compare_shows_a_run_without_metrics_and_curves(stores: Stores, monkeypatch: Any) -> None:
    """A training that failed early has neither; no value is filled in."""
    monkeypatch.chdir(stores.clone)
    publish(stores, OLDER)
    other = stores.clone_again(branch=OLDER)
    for name in ("train/metrics.json", "train/results.csv"):
        run_git("rm", "--quiet", f"{RUN}/{name}", cwd=other)
    record = json.loads((other / RUN / "run.json").read_text())
    (other / RUN / "run.json").write_text(json.dumps({**record, "branch": NEWER, "state": "failed"}))
    run_git("commit", "--quiet", "--all", "--message=less", cwd=other)
    run_git("push", "--quiet", "origin", f"HEAD:refs/heads/{NEWER}", cwd=other)
    printed = json.loads(command("compare", OLDER, NEWER, "--json").stdout)
    assert [run["state"] for run in printed["runs"]] == ["finished", "failed"]
    assert printed["runs"][1]["metrics"] == {}
    assert f"2  {NEWER} (failed)" in command("compare", OLDER, NEWER).stdout
    assert command("compare", NEWER).exit_code == 0
