"""Many experiments on a Ray cluster: what is trained, how it ends, and what a lost node, a failure or Ctrl-C leaves.

The engine, papermill and the kernels are real; the notebooks are small ones where no training is needed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import pytest
from conftest import ROOT, SEARCHED, Stores, is_alive, run_git

from lib.errors import ExperimentError, RemoteError
from lib.experiment.load import load_experiment
from lib.experiment.matrix import read_sweep
from lib.remotes.credentials import Credentials
from lib.results.published import find_published
from lib.sandbox.make import make_sandbox
from lib.sweep.engine import Cluster
from lib.sweep.sweep import Scoreboard, describe, run_sweep, train_all
from lib.sweep.worker import Job, Progress
from lib.sync import Refs, check, recover

SMALL = ROOT / "experiments/000_det_sandbox.yaml"


# ── what is trained ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def matrix(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that writes the small experiment's file with a `sweep` in it."""

    def write(text: str) -> Path:
        file = tmp_path / "matrix.yaml"
        file.write_text(f"{SMALL.read_text(encoding='utf-8')}\nsweep: {text}\n", encoding="utf-8")
        return file

    return write


def test_a_matrix_expands_to_an_experiment_for_each_combination(matrix: Callable[[str], Path]) -> None:
    """Each is named after its values, has the file's other values, and `-p` applied."""
    file = matrix("{training.learning_rate: [0.001, 3e-3], model.architecture: [yolo11n, yolo11s]}")
    found = read_sweep([file], {"training.epochs": 2})
    assert [experiment.name for experiment in found] == [
        "exp000_sandbox-0.001-yolo11n",
        "exp000_sandbox-0.001-yolo11s",
        "exp000_sandbox-0.003-yolo11n",
        "exp000_sandbox-0.003-yolo11s",
    ]
    last = found[-1]
    assert (last.training.learning_rate, last.model.architecture, last.training.epochs) == (0.003, "yolo11s", 2)
    assert last.description.endswith("With training.learning_rate 0.003, model.architecture yolo11s.")
    base = load_experiment(SMALL, {"training.epochs": 2, "training.learning_rate": 0.003})
    own = {"name": base.name, "description": base.description}
    assert last.model_copy(update={**own, "model": base.model}) == base


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1, 2]", "sweep is [1, 2]: it should be a mapping of keys to lists of values"),
        ("{}", "sweep is {}: it should be a mapping"),
        ("{training.epochs: 3}", "sweep.training.epochs is 3: it should be a list of values"),
        ("{training.epochs: []}", "sweep.training.epochs is []: it should be a list of values"),
        ("{training.epochs: [3, 3]}", "sweep.training.epochs is [3, 3]: each value may be named only once"),
        ("{name: [a, b]}", "sweep.name: name cannot be swept"),
        ("{seed: [1, 2]}", "sweep.seed: -p sets the same key"),
        ("{training.epoch: [3]}", "with training.epoch 3: training.epoch is not a key of an experiment"),
        ("{training.epochs: [3, 0]}", "with training.epochs 0: training.epochs is 0"),
        ("{model.pretrained: [a/b.pt, a-b.pt]}", "its experiment detection/exp000-sandbox-a-b-pt is also one of"),
    ],
)
def test_an_invalid_matrix_is_rejected(matrix: Callable[[str], Path], text: str, expected: str) -> None:
    """The error names file, key and value, before anything is started."""
    file = matrix(text)
    with pytest.raises(ExperimentError) as caught:
        read_sweep([file], {"seed": 1})
    assert str(file) in caught.value.what
    assert expected in caught.value.what
    assert caught.value.remedy


def test_two_experiments_of_one_name_are_rejected(matrix: Callable[[str], Path]) -> None:
    """They would write the same checkpoint."""
    with pytest.raises(ExperimentError, match="detection/exp000-sandbox is also one of"):
        read_sweep([SMALL, SMALL], {})
    assert len(read_sweep([SMALL, matrix("{seed: [1, 2]}")], {})) == 3


def test_a_matrix_cannot_be_loaded_as_one_experiment(matrix: Callable[[str], Path]) -> None:
    """The error names the command for a matrix."""
    with pytest.raises(ExperimentError, match="sweep turns a file into many experiments, for `python -m lib sweep`"):
        load_experiment(matrix("{seed: [1, 2]}"))


def test_a_published_run_matches_by_experiment_and_commit(stores: Stores) -> None:
    """The newest finished run of the same experiment and commit is returned; unreadable runs are skipped."""
    experiment = load_experiment(SMALL)
    name = f"kaggle-train-detection-{experiment.slug}"
    record = {
        "experiment": experiment.model_dump(mode="json"), "commit": "c" * 40, "state": "finished", "machine": {},
    }  # fmt: skip
    other = load_experiment(SMALL, {"seed": 7}).model_dump(mode="json")
    runs = {
        "20260101-000000": record,
        "20260102-000000": record,
        "20260103-000000": {**record, "state": "interrupted"},
        "20260104-000000": {**record, "commit": "d" * 40},
        "20260105-000000": {**record, "experiment": other},
        "20260106-000000": None,
    }
    file = stores.clone / experiment.artifacts / "run.json"
    for stamp, content in runs.items():
        branch = f"{name}-{stamp}"
        run_git("checkout", "--quiet", "-b", branch, "main", cwd=stores.clone)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{" if content is None else json.dumps({**content, "branch": branch}))
        run_git("add", "--force", file, cwd=stores.clone)
        run_git("commit", "--quiet", "--message=run", cwd=stores.clone)
        run_git("push", "--quiet", "origin", branch, cwd=stores.clone)
    refs = Refs(stores.clone_again(), Credentials())
    assert find_published(refs, experiment, "c" * 40) == f"{name}-20260102-000000"
    assert find_published(refs, experiment, "d" * 40) == f"{name}-20260104-000000"
    assert find_published(refs, load_experiment(SMALL, {"seed": 8}), "c" * 40) == ""
    assert find_published(refs, load_experiment(SMALL, {"name": "exp000"}), "c" * 40) == ""


@pytest.mark.slow
def test_a_run_that_a_person_has_stopped_is_left_alone(tmp_path: Path) -> None:
    """The sweep says so, starts nothing, and exits with 1: the run is not published."""
    sandbox = tmp_path / "sandbox"
    made = make_sandbox(ROOT, sandbox, load_experiment(SMALL))
    stop = "refs/stops/detection-exp000-sandbox"
    run_git("push", "--quiet", made.origin, f"HEAD:{stop}", cwd=sandbox / "seed")
    swept = run_sweep_command(SMALL, "--sandbox", sandbox, "--folder", tmp_path / "work", "--gpus-per-run", "0")
    assert swept.returncode == 1, swept.stderr
    assert f"detection-exp000-sandbox was asked to stop ({stop}, {made.commit[:12]}): add --resume" in swept.stdout
    assert not (tmp_path / "work/detection").exists()


class Swallows:
    """An engine that is interrupted in a client that loses the exception, and whose runs end when they are asked to."""

    pause = 0.01

    def __init__(self, number: signal.Signals) -> None:
        self.number, self.asked = number, False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def start(self, jobs: Mapping[str, Job], refs: Refs) -> None:
        """Take no job."""

    def look(self) -> dict[str, Progress]:
        """Lose an interrupt, once."""
        with contextlib.suppress(KeyboardInterrupt):
            if not self.asked:
                os.kill(os.getpid(), self.number)
                time.sleep(5)
        return {"one": Progress("stopped" if self.asked else "running")}

    def stop(self) -> float:
        """End the run."""
        self.asked = True
        return 10.0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_a_client_swallows_stops_the_sweep(stores: Stores, number: signal.Signals) -> None:
    """Ray's client may lose the exception of Ctrl-C; the sweep still asks its runs to stop."""
    engine, seen = Swallows(number), list[str]()
    run_sweep({}, Refs(stores.clone, Credentials()), engine, lambda progress: seen.append(progress["one"].state))
    assert seen == ["running", "stopped"]


# ── on a cluster ────────────────────────────────────────────────────────────────────────────────────────────────────

HEAD = """
# %% tags=["parameters"]
module = ""
experiment = ""
working = ""
repository = ""
commit = ""
what = ""

# %%
import json, os, pathlib, signal, subprocess, sys, time
folder = pathlib.Path(working)
train = folder / "clone/artifacts" / module / experiment["name"] / "train"
train.mkdir(parents=True)
def say(text):
    with (folder / "run.log").open("a") as log:
        print(text, file=log)
say("[00:00:01] 9/10: Run training + Automatic model sync")
(train / "results.csv").write_text("epoch,time,metrics/mAP50-95(B)\\n1,4.0,0.25\\n2,8.0,0.125\\n")
"""
TAIL = """
# %%
record = {"branch": "kaggle-train-" + what, "commit": "c" * 40, "experiment": experiment, "machine": {}}
(train.parent / "run.json").write_text(json.dumps(record))
"""
SMALL_RUN = (
    HEAD
    + """
# %%
if what == "fails":
    raise ValueError("no luck")
if what == "dies":
    os.kill(os.getpid(), signal.SIGKILL)
if what == "waits" or what == "waits once" and len(list(folder.parent.iterdir())) == 1:
    child = subprocess.Popen(["sleep", "600"])
    (folder / "pids").write_text(f"{os.getpid()} {child.pid}")
    try:
        child.wait()
    except KeyboardInterrupt:
        child.kill()
        (folder / "let-go").touch()
        raise
"""
    + TAIL
)


class Sweep:
    """A driver in a process of its own with a clone, and the progress that it has reported."""

    def __init__(self, folder: Path, clone: Path) -> None:
        self.folder, self.seen_file, self.clone = folder, folder / "seen.json", clone
        folder.mkdir()
        self.process: subprocess.Popen[str] | None = None

    def start(
        self, whats: Mapping[str, Mapping[str, Any]], *, cpus: float = 1, nodes: int = 0, kill: str = "",
        stop: bool = False, resume: bool = False, source: str = SMALL_RUN,
    ) -> None:  # fmt: skip
        """Start a sweep of small notebooks, each with parameters of its own."""
        jobs = {}
        for name, parameters in whats.items():
            experiment = load_experiment(SMALL, {"name": name}).model_dump(mode="json")
            sources = {"notebooks/train.py": source}
            jobs[name] = {
                "experiment": experiment, "sources": sources, "parameters": {"commit": "", **parameters},
                "folder": str(self.folder),
            }  # fmt: skip
        plan = {
            "nodes": nodes, "cpus": cpus, "kill": kill, "stop": stop, "resume": resume, "seen": str(self.seen_file),
            "clone": str(self.clone), "jobs": jobs,
        }  # fmt: skip
        words = [sys.executable, str(ROOT / "tests/sweep/sweep_driver.py"), json.dumps(plan)]
        with (self.folder / "driver.log").open("w") as log:
            self.process = subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, text=True)

    def seen(self) -> dict[str, Progress]:
        """Return the progress of the runs."""
        if not self.seen_file.is_file():
            return {}
        return {name: Progress(**each) for name, each in json.loads(self.seen_file.read_text()).items()}

    def wait(self, until: Callable[[dict[str, Progress]], bool] | None = None) -> dict[str, Progress]:
        """Wait until `until` accepts the progress, or for the end."""
        assert self.process is not None
        end = time.monotonic() + 180
        while time.monotonic() < end:
            if self.process.poll() is not None or (until is not None and until(self.seen())):
                break
            time.sleep(0.2)
        log = (self.folder / "driver.log").read_text()
        assert until is not None or self.process.returncode == 0, log
        assert time.monotonic() < end, log
        return self.seen()

    def runs(self, name: str) -> list[Path]:
        """Return the folders of a run's attempts, in order."""
        return sorted((self.folder / "detection" / name).iterdir())


@pytest.fixture
def sweep(stores: Stores, tmp_path: Path) -> Iterator[Sweep]:
    """Return a sweep that is not started; end it after the test."""
    made = Sweep(tmp_path / "sweep", stores.clone)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.terminate()
        try:
            made.process.wait(60)
        finally:
            made.process.kill()


@pytest.mark.slow
def test_a_run_that_fails_stops_no_other(sweep: Sweep) -> None:
    """A failed run is reported with its error, a killed kernel too; the other runs are published."""
    sweep.start({name: {"what": name} for name in ("works", "fails", "dies", "too")}, cpus=0.5)
    ended = sweep.wait()
    assert {name: each.state for name, each in ended.items()} == {
        "works": "published", "fails": "failed", "dies": "failed", "too": "published",
    }  # fmt: skip
    assert ended["works"].branch == "kaggle-train-works"
    assert (ended["works"].epoch, ended["works"].epochs, ended["works"].best) == (2, 18, 0.25)
    assert "ValueError: no luck" in ended["fails"].note
    assert "DeadKernelError" in ended["dies"].note
    (attempt,) = sweep.runs("fails")
    assert f"Everything is in {attempt}." in ended["fails"].note
    assert "no luck" in (attempt / "train_module_1_detection.executed.ipynb").read_text()


@pytest.mark.slow
def test_ctrl_c_stops_every_run(sweep: Sweep) -> None:
    """A running run is interrupted and releases what it holds; a waiting one does not start."""
    sweep.start({name: {"what": "waits"} for name in ("one", "two", "three")}, cpus=float(os.cpu_count() or 1) / 2)
    sweep.wait(lambda seen: sum(each.step.startswith("9/10") for each in seen.values()) == 2)
    assert sweep.process is not None
    sweep.process.send_signal(signal.SIGINT)
    ended = sweep.wait()
    assert {each.state for each in ended.values()} == {"stopped"}
    begun = [attempt for name in ended for attempt in (sweep.folder / "detection" / name).glob("*")]
    assert len(begun) == 2
    for attempt in begun:
        assert (attempt / "let-go").is_file()
        assert not any(is_alive(int(pid)) for pid in (attempt / "pids").read_text().split())


@pytest.mark.slow
def test_a_node_that_is_killed_loses_no_run(sweep: Sweep) -> None:
    """The run resumes on another node, and no process of it is left on the dead one; an older stop has no effect."""
    run_git("push", "--quiet", "origin", "HEAD:refs/stops/detection-long", cwd=sweep.clone)
    sweep.start({"long": {"what": "waits once"}, "short": {"what": "short"}}, nodes=2, kill="long", resume=True)
    states: list[tuple[str, str]] = []

    def noted(seen: dict[str, Progress]) -> bool:
        if "long" in seen and (message := (seen["long"].state, seen["long"].node)) not in states:
            states.append(message)
        return seen.get("long", Progress()).has_ended

    sweep.wait(noted)
    ended = sweep.wait()
    assert {each.state for each in ended.values()} == {"published"}
    nodes = [node for state, node in states if state == "running" and node]
    assert len(set(nodes)) == 2, states
    first, second = sweep.runs("long")
    assert ended["long"].node == nodes[-1]
    assert not (second / "pids").exists()
    assert not (first / "let-go").exists()
    kernel, _ = map(int, (first / "pids").read_text().split())
    assert not is_alive(kernel)


@pytest.mark.slow
def test_a_stopped_run_that_loses_its_node_is_not_resumed(stores: Stores, sweep: Sweep) -> None:
    """It did not get to obey; another session would delete the stop and train on."""
    sweep.start({"long": {"what": "waits once"}}, nodes=2, kill="long", stop=True)
    ended = sweep.wait()["long"]
    assert ended.state == "stopped"
    assert "its node was lost" in ended.note
    assert "and detection-long was asked to stop (refs/stops/detection-long, " in ended.note
    assert len(sweep.runs("long")) == 1
    assert "refs/stops/detection-long" in stores.refs()


PUBLISHES = (
    HEAD
    + """
# %%
from datetime import UTC, datetime
from lib.remotes.credentials import Credentials
from lib.results.published import find_published
from lib.sync import Publication, Refs, RunLock, sync_outputs
from conftest import RUN, WEIGHTS, write_run
clone = folder / "published-from"
subprocess.run(["git", "clone", "--quiet", repository, clone], check=True)
write_run(clone, seed=int(what.partition(" ")[0]))
branch = "kaggle-train-" + experiment["name"]
# all of them at one time
ready = folder.parent.parent / "ready"
ready.mkdir(exist_ok=True)
(ready / experiment["name"]).touch()
while len(list(ready.iterdir())) < 8:
    time.sleep(0.05)
def tell(text):
    print(text)
    if "dies" in what and text.startswith(what.partition(" dies at ")[2]):
        os.kill(os.getpid(), signal.SIGKILL)
hold = RunLock(Refs(clone, Credentials()), branch, lease=3.0)
sync_outputs(Publication(clone, branch, "Trained", RUN, WEIGHTS, datetime.now(UTC), hold=hold), say=tell)
"""
    + TAIL
)


@pytest.mark.slow
def test_eight_runs_publish_at_once(stores: Stores, sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight runs publish to one Git repository and one DVC remote, some killed: none is half published."""
    monkeypatch.setenv("PYTHONPATH", SEARCHED)
    whats = {
        "one": "1", "same": "1", "two": "2", "same-dies": "1 dies at Phase 3", "three": "3",
        "dies-early": "4 dies at Phase 2", "dies-late": "2 dies at Phase 4", "four": "4",
    }  # fmt: skip
    parameters = {name: {"what": what, "repository": str(stores.origin)} for name, what in whats.items()}
    sweep.start(parameters, cpus=(os.cpu_count() or 1) / 8, source=PUBLISHES)
    ended = sweep.wait()
    killed = {name for name, what in whats.items() if "dies" in what}
    assert {name for name, each in ended.items() if each.state == "failed"} == killed, ended
    assert {name for name, each in ended.items() if each.state == "published"} == whats.keys() - killed
    other = stores.clone_again()
    assert recover(other, say=str) == 0
    branches = {ref.removeprefix("refs/heads/kaggle-train-") for ref in stores.refs()}
    assert branches == whats.keys() - killed
    found = check(other)
    assert found.is_healthy, found.findings
    assert found.objects == 2 * 4  # of four contents, each once
    for name in branches:
        clone = stores.clone_again(f"of-{name}", branch=f"kaggle-train-{name}")
        done = subprocess.run([sys.executable, "-m", "dvc", "pull", "--quiet"], cwd=clone, capture_output=True)
        assert done.returncode == 0, done.stderr


# ── the command ─────────────────────────────────────────────────────────────────────────────────────────────────────


def run_sweep_command(*words: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run `python -m lib sweep`."""
    command = [sys.executable, "-m", "lib", "sweep", *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--gpus-per-run", "64"], "no node has room for a run of 64 GPUs and 1 CPUs"),
        (["--address", "127.0.0.1:1"], "no Ray cluster answers at --address '127.0.0.1:1'"),
    ],
)
def test_a_sweep_that_no_cluster_can_run_is_rejected(tmp_path: Path, words: list[str], expected: str) -> None:
    """The error comes at once: the task would wait forever."""
    done = run_sweep_command(SMALL, "--sandbox", tmp_path / "sandbox", "--folder", tmp_path / "sweep", *words)
    assert done.returncode == 1
    assert expected in done.stderr, done.stderr
    assert "What to do:" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_ray_the_error_has_the_remedy(tmp_path: Path) -> None:
    """Ray is in an optional dependency group."""
    (tmp_path / "ray.py").write_text("raise ImportError('No module named ray')\n")
    done = subprocess.run(
        [sys.executable, "-m", "lib", "sweep", str(SMALL)], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1
    assert "uv sync --group cluster" in done.stderr


def test_a_sweep_whose_commit_lacks_the_dvc_remote_starts_nothing(stores: Stores, tmp_path: Path) -> None:
    """Each run would stop in its own clone, one after the other."""
    (stores.clone / ".dvc/config").write_text("")
    run_git("commit", "--quiet", "--all", "--message=nothing", cwd=stores.clone)
    run_git("push", "--quiet", "origin", "HEAD:main", cwd=stores.clone)
    (stores.clone / ".dvc/config.local").write_text(
        "[core]\n    remote = storage\n['remote \"storage\"']\n    url = /x\n"
    )
    (stores.clone / "artifacts").rename(tmp_path / "artifacts")  # the tree must be clean
    folder, experiments = tmp_path / "runs", [load_experiment(ROOT / "experiments/000_det_sandbox.yaml")]
    with pytest.raises(RemoteError, match=r"core\.remote, remote\.storage\.url"):
        train_all(
            stores.clone, experiments, Cluster(), sandbox=None, allow_dirty=False, secrets="", folder=folder,
            watched=False,
        )  # fmt: skip
    assert not folder.exists()


def test_the_lines_of_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A new step is logged at once and the same one not again; the screen shows the same lines."""
    log = tmp_path / "sweep.log"
    running = Progress("running", "a-1", "9/10: Run training", 3, 10, 420.0, 0.5)
    with Scoreboard(log, {"detection/old": "kaggle-train-old"}, watched=False) as board:
        board.show({"detection/new": Progress()})
        board.show({"detection/new": running})
        board.show({"detection/new": running})
        board.show({"detection/new": Progress("lost", "a-1", "9/10: Run training", 3, 10)})
        board.show({"detection/new": Progress("failed", "b-2", note="no luck\nmore")})
    lines = [line.partition("] ")[2] for line in log.read_text().splitlines()]
    assert lines == [
        "detection/old: already published as kaggle-train-old",
        "detection/new: waiting",
        "detection/new: 9/10: Run training, on a-1, epoch 3 of 10, 7 min 00 s left, best mAP50-95 0.500",
        "detection/new: its node is lost, another one resumes it, on a-1, epoch 3 of 10",
        "detection/new: failed, on b-2, no luck",
    ]
    assert capsys.readouterr().out == log.read_text()
    assert describe(Progress("running")) == "starting"


@pytest.mark.slow
def test_a_training_resumes_when_its_node_is_killed(tmp_path: Path) -> None:
    """Of two whole runs on two nodes, the killed one resumes from its checkpoint; a second sweep has nothing to do."""
    sandbox, folder = tmp_path / "sandbox", tmp_path / "sweep"
    keys = {
        "training.epochs": 4,
        "training.image_size": 64,
        "session.checkpoint_minutes": 0.01,
        "session.lease_minutes": 0.3,
    }
    given = [word for key, value in keys.items() for word in ("-p", key, value)]
    words = ["--sandbox", sandbox, "--folder", folder, "--gpus-per-run", 0, *given]
    second = tmp_path / "second.yaml"
    second.write_text(SMALL.read_text(encoding="utf-8").replace("exp000_sandbox", "exp000_other"), encoding="utf-8")
    script = (
        "import subprocess, sys\nsys.path.insert(0, 'tests/sweep')\nfrom sweep_driver import make_nodes\n"
        "machines = make_nodes(2)\nprint(machines.address, flush=True)\n"
        "names = {node.node_id[:4]: node for node in machines.worker_nodes}\n"
        "machines.remove_node(names[sys.stdin.readline().strip()], allow_graceful=False)\nprint('killed', flush=True)\n"
        "sys.stdin.readline()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as nodes:
        assert nodes.stdin is not None
        assert nodes.stdout is not None
        address = nodes.stdout.readline().strip()
        command = [sys.executable, "-m", "lib", "sweep", SMALL, second, *words, "--address", address]
        driver = subprocess.Popen([*map(str, command)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert driver.stdout is not None
        lines, node = [], ""
        checkpoint = "refs/heads/kaggle-checkpoint-detection-exp000-sandbox"
        for line in driver.stdout:
            lines.append(line)
            if not node and "detection/exp000-sandbox:" in line and "9/10" in line:
                while checkpoint not in run_git("for-each-ref", cwd=sandbox / "origin.git"):
                    time.sleep(0.2)
                node = line.partition(", on ")[2].split(",")[0].strip()
                print(node.rpartition("-")[2], file=nodes.stdin, flush=True)
                assert nodes.stdout.readline() == "killed\n"
        output = "".join(lines)
        assert driver.wait() == 0, output
        again = run_sweep_command(SMALL, second, *words, "--address", address)
        nodes.stdin.close()
    (_, ended) = sorted((folder / "detection/exp000_sandbox").iterdir())
    assert "is uploaded" in (ended / "run.log").read_text()
    record = json.loads((ended / "origin/artifacts/detection/exp000_sandbox/run.json").read_text())
    assert record["start"]["epoch"] >= 1
    runs = run_git("for-each-ref", "--format=%(refname)", cwd=sandbox / "origin.git").splitlines()
    assert sum("kaggle-train-" in ref for ref in runs) == 2
    assert not [ref for ref in runs if "checkpoint" in ref or "refs/runs/" in ref or "refs/asks/" in ref]
    assert "its node is lost" in output
    assert "Curves: " in output
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("already published as") == 2


SKYPILOT = """
import sys
import jsonschema, sky, yaml
from sky.utils import schemas
task = yaml.safe_load(open(sys.argv[1]))
jsonschema.validate(task, schemas.get_task_schema())
jsonschema.validate(task["resources"], schemas.get_resources_schema())
del task["file_mounts"]  # which must be there
made = sky.Task.from_yaml_config(task)
assert all(resources.use_spot for resources in made.resources)
print(made.run)
"""


@pytest.mark.slow
def test_the_task_for_skypilot_is_valid(tmp_path: Path) -> None:
    """SkyPilot's own schema and reader accept it, if the package can be installed."""
    python = tmp_path / "sky/bin/python"
    for step in (["venv", "--quiet", tmp_path / "sky"], ["pip", "install", "--quiet", "--python", python, "skypilot"]):
        done = subprocess.run(["uv", *map(str, step)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"SkyPilot cannot be installed here: {done.stderr}")
    command = [str(python), "-c", SKYPILOT, str(ROOT / "docs/skypilot.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.replace("\\\n", "").splitlines() if "lib sweep" in line]
    words = line.replace('"$EXPERIMENT"', str(SMALL)).replace('"$SKYPILOT_NUM_GPUS_PER_NODE"', "64").split()
    options = words[words.index(str(SMALL)) :]
    assert options == [str(SMALL), "--gpus-per-run", "64", "--secrets", "~/secrets.json"]
    refused = run_sweep_command(*options[:3], "--sandbox", tmp_path / "sandbox", "--folder", tmp_path / "work")
    assert "no node has room for a run of 64 GPUs" in refused.stderr
