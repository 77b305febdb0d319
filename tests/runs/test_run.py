"""Whole runs, as a user starts them: rendered, executed with papermill, published, fetched into another clone."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, run_git
from wandb_files import records

from lib.remotes.credentials import Credentials
from lib.sandbox.dataset import draw_dataset
from lib.sync import Refs, RunLock
from lib.train.preflight import PUBLISHED

pytestmark = pytest.mark.slow

CANARY = f"ghp_{secrets.token_hex(16)}"  # random: the sandbox has a copy of this file
WEIGHTS = ("train/weights/best.pt", "train/weights/last.pt")
CHECKPOINT = "refs/heads/kaggle-checkpoint-detection-exp000-sandbox"
TRACKED_BY_GIT = (
    "README.md",
    "run.json",
    "train/results.csv",
    "train/args.yaml",
    "train/metrics.json",
    "train/results.png",
    "train/weights/best.pt.dvc",
    "train/weights/last.pt.dvc",
    "test/predictions.json",
    "test/predictions.png",
    "test/worst.png",
    "test/confusion_matrix.png",
)


@dataclass(frozen=True)
class Run:
    """The result of one `render.py MODULE --run`."""

    module: str
    sandbox: Path
    notebook: Path
    output: str
    status: int

    @property
    def artifacts(self) -> str:
        """The path of the artifacts in a clone."""
        return f"artifacts/{self.module}/exp000_sandbox"

    @property
    def clone(self) -> Path:
        """The clone of the newest run."""
        return max(self.sandbox.glob(f"runs/{self.module}-*"), key=lambda path: path.stat().st_mtime) / "origin"

    def refs(self) -> list[str]:
        """Return every ref of the sandbox's repository, except main and the repository's identity."""
        listed = run_git("for-each-ref", "--format=%(refname)", cwd=self.sandbox / "origin.git").splitlines()
        return [ref for ref in listed if ref != "refs/heads/main" and not ref.startswith("refs/kaggle/")]

    def objects(self) -> set[str]:
        """Return every file of the DVC remote."""
        return {str(path) for path in (self.sandbox / "dvc-remote").rglob("*") if path.is_file()}


def environment() -> dict[str, str]:
    """Return the environment of a run, with keys that must not appear anywhere, and a service that does not answer."""
    address = f"json://127.0.0.1:9/{CANARY}?cto=1&rto=1"
    return {**os.environ, "GITHUB_TOKEN": CANARY, "NOTIFY_URLS": address, "COLUMNS": "200"}


def detection_in(sandbox: Path) -> list[str]:
    """Return the beginning of the command that trains detection in a sandbox with few images, drawn at first."""
    data = sandbox.with_name("data")
    if not data.exists():
        draw_dataset(data, "detection", counts={"train": 32, "val": 8, "test": 8})
    return [sys.executable, "render.py", "detection", "--run", "--sandbox", str(sandbox), "--data", str(data)]


def render(module: str, sandbox: Path, *parameters: str, epochs: int = 2) -> Run:
    """Run `render.py MODULE --run` in the current work tree; detection has few images, to be fast."""
    output = sandbox.parent / f"rendered-{module}"
    whole = [sys.executable, "render.py", module, "--run", "--sandbox", str(sandbox)]
    command = [*(detection_in(sandbox) if module == "detection" else whole), "--output", str(output)]
    done = subprocess.run(
        [*command, "-p", "epochs", str(epochs), *parameters],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    notebook = next(output.glob("*.executed.ipynb"), output)
    return Run(module, sandbox, notebook, done.stdout + done.stderr, done.returncode)


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the sandbox of all runs of this file, kept between them like a user's."""
    return tmp_path_factory.mktemp("runs") / "sandbox"


@pytest.fixture(scope="module")
def detection(sandbox: Path) -> Run:
    """Return a finished run of detection, two epochs long, without a warm-up, which takes a hundred steps."""
    run = render("detection", sandbox, "-p", "training.warmup_epochs", "0")
    assert run.status == 0, run.output[-5000:]
    return run


@pytest.fixture(scope="module")
def second_clone(detection: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return another clone, into which the three printed commands fetched the model."""
    clone = tmp_path_factory.mktemp("second") / "clone"
    run_git("clone", "--quiet", detection.sandbox / "origin.git", clone, cwd=clone.parent)
    printed = re.search(r"To bring the model.*\n((?:  (?:git|dvc) .*\n)+)", detection.output)
    assert printed, detection.output[-3000:]
    commands = [line.split() for line in printed[1].splitlines()]
    assert [command[:2] for command in commands] == [["git", "fetch"], ["git", "checkout"], ["dvc", "pull"]]
    for command in commands:
        command = [sys.executable, "-m", *command] if command[0] == "dvc" else command  # noqa: PLW2901
        subprocess.run(command, cwd=clone, check=True, capture_output=True, timeout=120)
    return clone


def test_one_branch_is_published_with_the_required_name(detection: Run) -> None:
    """The branch is `kaggle-train-{module}-{experiment}-{YYYYMMDD-HHMMSS}`, and no other ref is left."""
    (ref,) = detection.refs()
    assert re.fullmatch(r"refs/heads/kaggle-train-detection-exp000-sandbox-\d{8}-\d{6}", ref)


def test_every_listed_file_reaches_a_second_clone(detection: Run, second_clone: Path) -> None:
    """The branch and `dvc pull` fetch every file of the requirements, and none is empty."""
    for name in (*TRACKED_BY_GIT, *WEIGHTS):
        assert (second_clone / detection.artifacts / name).stat().st_size > 0, name


def test_weights_are_on_the_dvc_remote_and_not_in_git(detection: Run, second_clone: Path) -> None:
    """Git has only the `.dvc` files, and not the log."""
    tracked = run_git("ls-files", detection.artifacts, cwd=second_clone).splitlines()
    assert f"{detection.artifacts}/train/weights/best.pt.dvc" in tracked
    assert not [name for name in tracked if name.endswith((".pt", ".jpg", ".log"))]


def test_the_rehearsal_has_tried_every_kind_of_file(detection: Run, second_clone: Path) -> None:
    """A host may have rules for names: preflight commits a file of each kind, and of no other."""
    tracked = run_git("ls-files", detection.artifacts, cwd=second_clone).splitlines()
    assert {Path(name).suffix or Path(name).name for name in tracked} == {
        Path(name).suffix or Path(name).name for name in PUBLISHED
    }


def test_the_published_model_predicts_on_an_image(detection: Run, second_clone: Path) -> None:
    """`best.pt` of the second clone loads and has the module's class."""
    from ultralytics.models import YOLO

    model = YOLO(str(second_clone / detection.artifacts / "train/weights/best.pt"))
    image = next((second_clone / "data/detection/images/test").glob("*.jpg"))
    results: Any = model.predict(str(image), imgsz=160, device="cpu", conf=0.0001, verbose=False)
    assert results[0].names == {0: "container_door"}
    assert results[0].orig_shape == (320, 320)


def test_training_uses_the_learning_rate_of_the_experiment(detection: Run) -> None:
    """The `results.csv` of ultralytics has the experiment's rate in its first epoch."""
    header, first = (detection.clone / detection.artifacts / "train/results.csv").read_text().splitlines()[:2]
    row = dict(zip(header.split(","), first.split(","), strict=True))
    assert [float(row[f"lr/pg{group}"]) for group in range(3)] == pytest.approx([0.002] * 3, rel=1e-6)


def test_a_parameter_of_render_overrides_the_experiment(detection: Run) -> None:
    """After `-p epochs 2`, `results.csv` has two rows, and run.json has the value."""
    folder = detection.clone / detection.artifacts
    assert len((folder / "train/results.csv").read_text().splitlines()) == 1 + 2
    assert json.loads((folder / "run.json").read_text())["experiment"]["training"]["epochs"] == 2


def test_metrics_contain_only_measured_values(detection: Run) -> None:
    """Metrics cover validation and test, only boxes for detection; the best epoch is a trained one."""
    metrics = json.loads((detection.clone / detection.artifacts / "train/metrics.json").read_text())
    assert metrics["epochs"] == 2
    assert metrics["best_epoch"] in (1, 2)
    for split in ("validation", "test"):
        assert set(metrics[split]) == {"images", "box"}
        assert set(metrics[split]["box"]) == {"precision", "recall", "mAP50", "mAP50-95"}


def test_predictions_of_boxes_have_no_keypoints(detection: Run) -> None:
    """Every prediction has all other documented fields."""
    predictions = json.loads((detection.clone / detection.artifacts / "test/predictions.json").read_text())
    assert {tuple(item) for item in predictions} <= {("image_id", "file_name", "category_id", "bbox", "score")}


def test_run_json_records_the_origin_of_the_model(detection: Run, second_clone: Path) -> None:
    """Commit, dataset and lock are those of the clone."""
    import hashlib

    run = json.loads((second_clone / detection.artifacts / "run.json").read_text())
    assert run["commit"] == run_git("rev-parse", "HEAD^", cwd=second_clone)
    assert run["dataset"]["md5"] in (second_clone / "data/detection.dvc").read_text()
    assert run["lock"] == hashlib.sha256((second_clone / "uv.lock").read_bytes()).hexdigest()
    assert run["branch"] == run_git("branch", "--show-current", cwd=second_clone)
    assert run["seconds"]["training"] > 0
    assert run["prepared"]["images"] == run["dataset"]["pictures"]["train"] + run["dataset"]["pictures"]["val"]
    assert (run["batch_size"], run["machine"]["device"], run["seed"], run["state"]) == (8, "cpu", 42, "finished")


def test_the_summary_has_metrics_images_branch_and_times(detection: Run) -> None:
    """The output ends with metrics, branch and times, and the images that it names exist."""
    assert "Warning: NOTIFY_URLS, number 1: JSON: " in detection.output
    end = detection.output[detection.output.index("is trained and published") :]
    for word in ("mAP50-95", "validation", "test", "10/10: Cleanup", "Together", "wandb sync", "dvc pull"):
        assert word in end
    for image in re.findall(r"/\S+\.png", end):
        assert Path(image).is_file()


def test_the_steps_have_the_required_names_and_order(detection: Run) -> None:
    """The output has the steps 0/10 to 10/10."""
    shown = re.findall(r"^\[\d\d:\d\d:\d\d\] (\d+/10: .*)$", detection.output, re.MULTILINE)
    assert shown == [
        "0/10: Verify GPU (T4 x2)",
        "1/10: Clone repository from GitHub",
        "2/10: Install dependencies (Hybrid Strategy)",
        "3/10: Configure DVC with Google Drive",
        "4/10: Configure Git with GitHub token",
        "5/10: Configure WandB for experiment tracking",
        "6/10: Pull dataset via DVC",
        "7/10: Display training configuration",
        "8/10: Download pretrained YOLO weights",
        "9/10: Run training + Automatic model sync",
        "10/10: Cleanup (clear GPU cache)",
    ]


def test_the_log_of_a_successful_run_is_among_the_artifacts(detection: Run) -> None:
    """The log goes from the first step to the summary, with progress bars as plain lines."""
    log = (detection.clone / detection.artifacts / "run.log").read_text()
    assert "0/10: Verify GPU" in log
    assert "is trained and published" in log
    assert "\r" not in log
    assert "\x1b" not in log
    assert log == (detection.clone.parent / "run.log").read_text()


def test_each_epoch_is_one_line(detection: Run) -> None:
    """An epoch's line has losses, mAP and the time left; without a terminal, no line overwrites itself."""
    training = detection.output[detection.output.index("9/10: ") :].partition("Measured best.pt")[0]
    header, *rows = re.findall(r"^ +(?:epoch|\d/2) .*$", training, re.MULTILINE)
    assert header.split() == ["epoch", "box", "cls", "dfl", "mAP50", "mAP50-95", "time", "left"]
    assert [row.split()[0] for row in rows] == ["1/2", "2/2"]
    cells = json.loads(detection.notebook.read_text())["cells"]
    kept = "".join("".join(out.get("text", "")) for cell in cells for out in cell.get("outputs", []))
    assert not {"\r", "\x1b"} & {*kept, *detection.output}
    assert re.search(r"^Pulling data/detection: [\d.]+ MiB in ", detection.output, re.MULTILINE)


def leaks(*folders: Path) -> list[Path]:
    """Return the files that contain the token."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if CANARY.encode() in path.read_bytes()]


def test_no_file_of_the_run_has_a_credential(detection: Run) -> None:
    """A token of the environment is in no file of the clone, log, W&B, notebook and remotes."""
    assert not leaks(detection.sandbox, detection.notebook.parent)
    assert CANARY not in detection.output


def recorded(run: Run) -> tuple[set[str], dict[str, Any], list[tuple[str, str]]]:
    """Return ids, summary and alerts from a run's W&B files."""
    found = list(records(run.clone.parent))
    ids = {record.run.run_id for record in found if record.HasField("run")}
    items = [item for record in found if record.HasField("summary") for item in record.summary.update]
    summary = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
    return ids, summary, [(record.alert.title, record.alert.text) for record in found if record.HasField("alert")]


def test_wandb_has_one_run(detection: Run) -> None:
    """Training, test metrics and the published branch have one id; one alert is sent."""
    ids, summary, alerts = recorded(detection)
    folders = {path.name.rpartition("-")[2] for path in (detection.clone.parent / "wandb").glob("offline-run-*")}
    assert len(ids) == 1
    assert folders == ids
    metrics = json.loads((detection.clone / detection.artifacts / "train/metrics.json").read_text())
    assert {name: summary[f"test/box/{name}"] for name in metrics["test"]["box"]} == metrics["test"]["box"]
    branch = json.loads((detection.clone / detection.artifacts / "run.json").read_text())["branch"]
    assert (summary["branch"], summary["state"]) == (branch, "finished")
    assert alerts == [(f"{branch.removeprefix('kaggle-train-')} is finished", branch)]


def test_the_dashboard_is_shown_before_training_starts(detection: Run) -> None:
    """The user can open the curves from the first epoch on, or knows how to upload them."""
    before = detection.output.partition("1/2 ")[0]
    assert "Dashboard: offline; upload it with: wandb sync " in before[before.index("9/10: Run training") :]


def test_the_clone_keeps_index_head_and_branch(detection: Run) -> None:
    """A publication does not change the clone: HEAD is detached at the code's commit, nothing is staged or changed."""
    commit = json.loads((detection.clone / detection.artifacts / "run.json").read_text())["commit"]
    assert run_git("rev-parse", "HEAD", cwd=detection.clone) == commit
    status = run_git("status", "--porcelain", "--untracked-files=normal", cwd=detection.clone)
    assert status == "?? artifacts/"


def test_the_executed_notebook_shows_the_images(detection: Run) -> None:
    """Curves, predictions and the worst cases are in the notebook itself, each after its caption."""
    notebook = json.loads(detection.notebook.read_text())
    shown = [out["data"] for out in notebook["cells"][-1]["outputs"] if out["output_type"] == "display_data"]
    assert ["image/png" in data for data in shown] == [False, True] * 4
    captions = ["".join(data["text/markdown"]) for data in shown[::2]]
    assert captions[:3] == ["**Predictions on the test split**", "**The worst test images**", "**Training curves**"]


def test_running_the_executed_notebook_again_has_the_same_outputs(detection: Run) -> None:
    """Each cell is run again by nbval and compared, metrics included, since seeds are set; a branch is added."""
    before = len(detection.refs())
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--nbval", str(detection.notebook), "-q", "-p", "no:cacheprovider",
         "--nbval-sanitize-with", str(ROOT / "tests/runs/sanitize-notebook.cfg"),
         "--rootdir", str(detection.notebook.parent),
         "--nbval-cell-timeout", "500", "-c", os.devnull],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    assert len(detection.refs()) == before + 1


def test_a_refused_branch_leaves_only_the_models(detection: Run) -> None:
    """The host refuses the branch after preflight could push one: an error is shown, both remotes are unchanged."""
    hook = detection.sandbox / "origin.git/hooks/pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(
        "#!/bin/sh\nwhile read old new ref; do case $ref in refs/heads/kaggle-train-det*) exit 1;; esac; done\n"
    )
    hook.chmod(0o755)
    refs, objects = detection.refs(), detection.objects()
    try:
        run = render("detection", detection.sandbox, "-p", "training.learning_rate", "0.003", epochs=1)
    finally:
        hook.unlink()
    assert run.status == 1
    error = run.output[run.output.rindex("Error: ") :]
    assert "Git push failed" in error
    assert "What to do:" in error
    assert "Traceback" not in error
    assert (run.refs(), run.objects()) == (refs, objects)
    folder = run.clone / run.artifacts
    assert all((folder / name).stat().st_size > 0 for name in WEIGHTS)
    assert not list(folder.rglob("*.dvc"))
    assert run_git("diff", "--cached", "--name-only", cwd=run.clone) == ""
    assert "Git push failed" in (folder / "run.log").read_text()


def test_a_run_that_cannot_start_shows_and_logs_the_reason(detection: Run) -> None:
    """A missing checkpoint stops the run before training."""
    run = render("detection", detection.sandbox, "-p", "resume_from", "nowhere/last.pt")
    assert run.status == 1
    assert "model.resume_from is 'nowhere/last.pt'" in run.output
    assert "model.resume_from is 'nowhere/last.pt'" in (run.clone.parent / "run.log").read_text()


def test_a_second_session_of_the_experiment_stops_before_it_trains(detection: Run, tmp_path: Path) -> None:
    """Another machine holds the run and answers when asked; the second one stops with a remedy and changes nothing."""
    run_git("clone", "--quiet", detection.sandbox / "origin.git", tmp_path / "first", cwd=tmp_path)
    refs, key, name = Refs(tmp_path / "first", Credentials()), "detection-exp000-sandbox", "detection/exp000_sandbox"
    first = RunLock(refs, key, full_name=name, lease=10.0, say=str)
    assert first.try_take()
    try:
        before = detection.refs(), detection.objects()
        run = render("detection", detection.sandbox, "-p", "session.lease_minutes", "0.2")
        assert run.status == 1
        assert "is held by another session, which is being asked" in run.output
        assert f"another session is training {name} and is alive" in run.output
        assert not (run.clone / run.artifacts / "train").exists()
        assert (run.refs(), run.objects()) == before
    finally:
        first.release()


def test_a_session_whose_time_is_over_publishes_its_epochs(detection: Run) -> None:
    """The one epoch that fits is evaluated and published as interrupted; the next session resumes automatically."""
    run = render("detection", detection.sandbox, "-p", "session.max_hours", "0.0001", epochs=3)
    assert run.status == 0, run.output[-5000:]
    folder = run.clone / run.artifacts
    assert json.loads((folder / "run.json").read_text())["state"] == "interrupted"
    assert "stopped after epoch 1 of 3" in (folder / "README.md").read_text()
    branch = json.loads((folder / "run.json").read_text())["branch"]
    assert run_git("ls-tree", branch, f"{run.artifacts}/train/weights/last.pt.dvc", cwd=run.sandbox / "origin.git")
    assert CHECKPOINT in detection.refs()
    ids, summary, ((title, text),) = recorded(run)
    assert (len(ids), summary["state"], title.rpartition(" ")[2]) == (1, "interrupted", "interrupted")
    assert "stopped after epoch 1 of 3" in text
    differs = render("detection", detection.sandbox, epochs=4)
    assert differs.status == 1
    assert "training.epochs 3 → 4" in differs.output
    assert "-p session.resume always" in differs.output
    again = render("detection", detection.sandbox, epochs=3)
    assert again.status == 0, again.output[-5000:]
    assert CHECKPOINT not in detection.refs()
    metrics = json.loads((again.clone / again.artifacts / "train/metrics.json").read_text())
    assert metrics["epochs"] == 3
    resumed = json.loads((again.clone / again.artifacts / "run.json").read_text())
    assert resumed["start"]["epoch"] == 1
    assert resumed["prepared"]["reused"]


def test_a_published_run_can_be_run_again_from_any_clone(detection: Run, second_clone: Path) -> None:
    """The notebook of `rerun`, executed with papermill, has the same metrics and publishes a new branch."""
    branch = run_git("branch", "--show-current", cwd=second_clone)
    before = detection.refs()
    arguments = ["-m", "lib", "rerun", branch]
    rendered = subprocess.run(
        [sys.executable, *arguments], cwd=second_clone, capture_output=True, text=True, timeout=120
    )
    assert rendered.returncode == 0, rendered.stderr
    notebook = second_clone / "build" / branch / "train_module_1_detection.ipynb"
    assert f"Notebook: {notebook}\n" in rendered.stdout
    done = subprocess.run(
        [sys.executable, "-m", "papermill", notebook, notebook.with_suffix(".out.ipynb"), "--cwd", second_clone],
        cwd=second_clone, env=environment(), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    (new,) = set(detection.refs()) - set(before)
    (clone,) = second_clone.glob("build/sandbox/runs/detection-*/origin")
    first, again = (json.loads((path / detection.artifacts / "run.json").read_text()) for path in (second_clone, clone))
    assert f"refs/heads/{again['branch']}" == new
    same = ("commit", "experiment", "dataset", "lock", "versions", "repository")
    assert {key: again[key] for key in same} == {key: first[key] for key in same}
    metrics = [(path / detection.artifacts / "train/metrics.json").read_text() for path in (second_clone, clone)]
    assert metrics[0] == metrics[1]


def published(run: Run) -> list[str]:
    """Return the branches of finished runs."""
    return [ref for ref in run.refs() if ref.startswith("refs/heads/kaggle-train-")]


def kill_training(run: subprocess.Popen[str], sandbox: Path) -> None:
    """Kill a run's training process after its first epoch, as the system does when memory is short."""
    known = set(sandbox.glob("runs/*"))
    while run.poll() is None:
        new = set(sandbox.glob("runs/*")) - known
        if [file for folder in new for file in folder.glob("origin/artifacts/*/*/train/weights/last.pt")]:
            clones = [folder / "origin" for folder in new]
            for process in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):  # it has ended
                    arguments = (process / "cmdline").read_bytes().split(b"\0")
                    if b"lib.train.trainer" in arguments and (process / "cwd").readlink() in clones:
                        os.kill(int(process.name), signal.SIGKILL)
            return
        time.sleep(0.1)


@pytest.mark.parametrize("choice", ["publish", "keep"])
def test_a_training_that_fails_is_published_or_kept(detection: Run, choice: str) -> None:
    """`session.on_failure` decides; either way the run ends with the error and has its run.json."""
    output = detection.sandbox.parent / f"failing-{choice}"
    parameters = ["--output", str(output), "-p", "epochs", "200", "-p", "session.on_failure", choice]
    before = published(detection)
    with subprocess.Popen(
        [*detection_in(detection.sandbox), *parameters],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        kill_training(process, detection.sandbox)
        printed, _ = process.communicate(timeout=600)
    assert process.returncode == 1
    assert "killed by signal 9" in printed[printed.rindex("Error: ") :]
    assert len(published(detection)) == len(before) + (choice == "publish")
    assert CHECKPOINT in detection.refs()
    folder = detection.clone / detection.artifacts
    run = json.loads((folder / "run.json").read_text())
    assert run["state"] == "failed"
    assert "killed by signal 9" in run["reason"]
    assert "killed by signal 9" in (folder / "README.md").read_text()
    assert all((folder / name).stat().st_size > 0 for name in WEIGHTS)
    ids, summary, ((title, text),) = recorded(detection)
    assert (len(ids), summary["state"], title.rpartition(" ")[2]) == (1, "failed", "failed")
    assert "killed by signal 9" in text
    assert not leaks(detection.sandbox, output)
    assert CANARY not in printed


def damage_after_check(sandbox: Path, images: str) -> None:
    """Overwrite images of a run's dataset, given as a pattern, as soon as the dataset is checked."""
    until = time.monotonic() + 300
    while not (checked := list(sandbox.glob("runs/*/scratch/data-*.yaml"))) and time.monotonic() < until:
        time.sleep(0.05)
    for file in checked[0].parent.glob(f"dataset/data/*/{images}"):
        file.unlink()  # it may be a link into DVC's cache
        file.write_bytes(b"damaged")


def test_an_evaluation_that_fails_still_publishes_the_model(tmp_path: Path) -> None:
    """The test images are damaged while the model trains: weights and curves are published, with the reason."""
    arguments = (tmp_path / "sandbox", "images/test/*.jpg")
    threading.Thread(target=damage_after_check, args=arguments, daemon=True).start()
    run = render("detection", tmp_path / "sandbox", epochs=1)
    assert run.status == 1
    error = run.output[run.output.rindex("Error: the run stopped: ") :]
    assert "EvaluationError: not everything could be measured: test: left out " in error
    assert "test_0001.jpg" in error
    (ref,) = run.refs()
    clone = tmp_path / "second"
    branch, origin = ref.removeprefix("refs/heads/"), run.sandbox / "origin.git"
    run_git("clone", "--quiet", "--branch", branch, origin, clone, cwd=tmp_path)
    subprocess.run([sys.executable, "-m", "dvc", "pull", "--quiet"], cwd=clone, check=True, timeout=120)
    folder = clone / run.artifacts
    for name in (*WEIGHTS, "train/results.csv", "train/results.png", "train/args.yaml"):
        assert (folder / name).stat().st_size > 0, name
    metrics = json.loads((folder / "train/metrics.json").read_text())
    assert metrics.keys() == {"schema", "best_epoch", "epochs", "validation", "missing"}
    record = json.loads((folder / "run.json").read_text())
    assert record["state"] == "finished"
    assert "test_0001.jpg" in record["missing"]
    assert "Something is missing: not everything could be measured" in (folder / "README.md").read_text()
    _, summary, ((title, _),) = recorded(run)
    assert summary["branch"] == record["branch"]
    assert title.endswith(" is finished")


def test_localization_measures_boxes_and_corners(sandbox: Path) -> None:
    """The other module in the same sandbox has pose metrics, keypoints in every prediction, and its own branch.

    Its experiment requests an exported model, which is published and fetched with the weights; another clone predicts.
    """
    text = (ROOT / "experiments/000_loc_sandbox.yaml").read_text(encoding="utf-8")
    experiment = sandbox.parent / "exporting.yaml"
    experiment.write_text(f"{text}\nexport: [onnx]\n", encoding="utf-8")
    run = render("localization", sandbox, "--experiment", str(experiment), epochs=8)
    assert run.status == 0, run.output[-5000:]
    folder = run.clone / run.artifacts
    metrics = json.loads((folder / "train/metrics.json").read_text())
    assert set(metrics["test"]) == {"images", "box", "pose", "corners"}
    assert metrics["test"]["corners"]["found"] > 0
    assert metrics["test"]["pose"]["mAP50"] > 0.1
    predictions = json.loads((folder / "test/predictions.json").read_text())
    assert all(len(item["keypoints"]) == 4 * 3 for item in predictions)
    (ref,) = [ref for ref in run.refs() if ref.startswith("refs/heads/kaggle-train-localization-exp000-sandbox-")]
    branch = ref.removeprefix("refs/heads/")
    clone = sandbox.parent / "predicting"
    run_git("clone", "--quiet", sandbox / "origin.git", clone, cwd=sandbox.parent)
    images = sandbox / "seed/data/localization/images/test"
    command = [sys.executable, "-m", "lib", "predict", branch, str(images), "--device", "cpu"]
    predicted = subprocess.run(command, cwd=clone, env=environment(), capture_output=True, text=True, timeout=120)
    assert predicted.returncode == 0, predicted.stderr
    lines = predicted.stdout.splitlines()[:-1]
    assert len(lines) == metrics["test"]["images"]
    assert any(re.search(r": \w+ 0\.\d\d box( -?\d+){4} corners( -?[\d.]+,-?[\d.]+){4}", line) for line in lines)
    assert len(list((clone / "build/predictions" / branch).glob("*.jpg"))) == len(lines)
    model = clone / "build/models" / branch
    assert (model / "train/weights/best.onnx").stat().st_size > 2**20
    assert "best.onnx" in (model / "README.md").read_text()
    assert json.loads((model / "run.json").read_text())["exported"] == ["train/weights/best.onnx"]
    assert run_git("status", "--porcelain", cwd=clone) == ""
