"""`python -m lib sweep --on kaggle`: the real Git and kaggle clients, a bare repository, and an emulated Kaggle.

A session's work, its checkpoint and its published branch, is pushed by the test.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import nbformat
import pytest
from click.testing import CliRunner
from conftest import ROOT, Stores, copy_project, run_git
from git_host_emulator import GitHost
from kaggle_emulator import LOST, USER, WEEK, Act, Dataset, Fault, KaggleEmulator, Kernel, Session, use_account

from lib.cli.app import app
from lib.cli.runs import sweep
from lib.errors import KaggleError, RenderError, SyncError
from lib.experiment.load import load_experiment, read_yaml
from lib.experiment.matrix import read_sweep
from lib.kaggle.notebook import SOURCES, parameters, read_sources
from lib.remotes.credentials import Credentials
from lib.sweep.claims import PUSHES, move_claim, read_claims
from lib.sweep.kaggle import Kaggle
from lib.sweep.plan import GRACE, Claim
from lib.sweep.sweep import run_sweep
from lib.sweep.worker import Job, Progress
from lib.sync import Refs

SMALL = ROOT / "experiments/000_det_sandbox.yaml"
ADDRESS = "https://example.com/me/training.git"


class World:
    """A Git remote, an emulated Kaggle, and sweeps of the runs a, b and c."""

    def __init__(self, stores: Stores, kaggle: KaggleEmulator) -> None:
        self.stores, self.kaggle = stores, kaggle
        kaggle.next_run = [Act("RUNNING")]
        kaggle.quota = (0.0, 30.0)
        (stores.clone / "notebooks").mkdir()
        for name, text in read_sources(ROOT).items():
            (stores.clone / name).write_text(text)
        run_git("add", "notebooks", cwd=stores.clone)
        run_git("commit", "--quiet", "--message=notebook", cwd=stores.clone)
        run_git("push", "--quiet", "origin", "HEAD:main", cwd=stores.clone)
        self.commit = run_git("rev-parse", "HEAD", cwd=stores.clone)
        self.refs = Refs(stores.clone, Credentials())

    def engine(self, *names: str, commit: str = "", resume: bool = False, machine: str = "clone") -> Kaggle:
        """Return a sweep that has been started on a machine with a clone of its own."""
        clone = self.stores.folder / machine
        if not clone.exists():
            self.stores.clone_again(machine)
        engine = Kaggle(clone, resume=resume)
        engine.start(self.jobs(*names, commit=commit, machine=machine), Refs(clone, Credentials()))
        return engine

    def jobs(self, *names: str, commit: str = "", machine: str = "clone") -> dict[str, Job]:
        """Return the jobs of runs of these names."""
        given = {"repository": ADDRESS, "commit": commit or self.commit}
        sources, folder = read_sources(ROOT), str(self.stores.folder / "sweep" / machine)
        experiments = {name: load_experiment(SMALL, {"name": name}) for name in names}
        return {name: Job(each, sources, given, folder) for name, each in experiments.items()}

    def kernel(self, name: str) -> Kernel:
        """Return the kernel of a run."""
        return self.kaggle.kernels[f"{USER}/train-detection-{name}"]

    def end(self, name: str, state: str = "ERROR") -> None:
        """End the newest session of a run."""
        session = self.kernel(name).sessions[-1]
        assert session is not None
        session.end(state, "it ended")

    def publish(self, name: str, *, epoch: int = 0, state: str = "") -> str:
        """Push what a session of a run would: its checkpoint, or its branch of that state; return the branch."""
        experiment = load_experiment(SMALL, {"name": name})
        record: dict[str, object] = {"commit": self.commit, "experiment": experiment.model_dump(mode="json")}
        if epoch:
            branch, file = f"kaggle-checkpoint-{experiment.key}", "checkpoint.json"
            record |= {"epoch": epoch, "saved": "2026-11-28T00:00:00Z", "dataset": ""}
        else:
            branch, file = f"kaggle-train-{experiment.key}-20261128-000000", "run.json"
            record |= {"branch": branch, "state": state, "machine": {}}
        clone = self.stores.folder / "session"
        if not clone.exists():
            self.stores.clone_again("session")
        (clone / experiment.artifacts).mkdir(parents=True, exist_ok=True)
        (clone / experiment.artifacts / file).write_text(json.dumps(record))
        run_git("add", "--force", experiment.artifacts, cwd=clone)
        run_git("commit", "--quiet", "--message=session", cwd=clone)
        run_git("push", "--quiet", "--force", "origin", f"HEAD:refs/heads/{branch}", cwd=clone)
        run_git("reset", "--quiet", "--hard", "origin/main", cwd=clone)
        return branch

    def claims(self) -> dict[str, Claim]:
        """Return the claims by the runs' names."""
        found = read_claims(Refs(self.stores.clone, Credentials()))
        return {run.removeprefix("detection-"): claim for run, (_, claim) in found.items()}


@pytest.fixture
def world(stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Return a world with a secrets dataset, in which nothing has been pushed."""
    with KaggleEmulator() as kaggle:
        kaggle.datasets[f"{USER}/kaggle-training-secrets"] = Dataset()
        use_account(kaggle, tmp_path, monkeypatch)
        yield World(stores, kaggle)


def states(seen: dict[str, Progress]) -> dict[str, str]:
    """Return the states of the runs."""
    return {name: each.state for name, each in seen.items()}


def test_two_runs_are_pushed_and_the_third_waits_for_a_session(world: World) -> None:
    """A second look pushes nothing, and the third run follows when one has ended."""
    engine = world.engine("a", "b", "c")
    seen = engine.look()
    assert states(seen) == {"a": "running", "b": "running", "c": "waiting"}
    assert seen["c"].note == "for one of the GPU sessions to end"
    assert seen["a"].node == f"{USER}/train-detection-a/1"
    assert {name: (claim.pushes, claim.pushed) for name, claim in world.claims().items()} == {"a": (1, 1), "b": (1, 1)}
    assert states(engine.look()) == states(seen)
    assert len(world.kaggle.pushes) == 2
    branch = world.publish("a", state="finished")
    world.end("a", "COMPLETE")
    seen = engine.look()
    assert states(seen) == {"a": "published", "b": "running", "c": "running"}
    assert seen["a"].branch == branch
    assert len(world.kaggle.pushes) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_the_sessions_running(
    world: World, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sweep ends at once and says how to follow them; the same sweep, started again, pushes nothing twice."""
    engine = world.engine("a", "b")
    with pytest.raises(KeyboardInterrupt):
        run_sweep(world.jobs("a", "b"), world.refs, engine, lambda _: os.kill(os.getpid(), number))
    assert "The sessions on Kaggle go on. Start the same sweep again" in capsys.readouterr().out
    assert len(world.kaggle.active()) == 2
    assert states(world.engine("a", "b", machine="other").look()) == {"a": "running", "b": "running"}
    assert len(world.kaggle.pushes) == 2


@pytest.mark.slow
def test_a_run_is_pushed_again_while_its_sessions_complete_epochs(world: World) -> None:
    """By any machine; after two sessions without an epoch it has failed, with its address, until `--resume`."""
    world.engine("a").look()
    for epoch in (3, 5):
        world.publish("a", epoch=epoch)
        world.end("a")
        seen = world.engine("a", machine=f"machine-{epoch}").look()
        assert (seen["a"].state, seen["a"].epoch) == ("running", epoch)
    world.end("a")
    assert states(world.engine("a").look()) == {"a": "running"}
    world.end("a")
    failed = world.engine("a").look()["a"]
    assert failed.state == "failed"
    assert f"https://www.kaggle.com/code/{USER}/train-detection-a" in failed.note
    assert len(world.kaggle.pushes) == 4
    resumed = world.engine("a", resume=True)
    assert states(resumed.look()) == {"a": "running"}
    world.end("a")
    assert states(resumed.look()) == {"a": "running"}
    world.end("a")
    assert states(resumed.look()) == {"a": "failed"}
    assert len(world.kaggle.pushes) == 6


@pytest.mark.slow
def test_two_sweeps_at_once_push_each_run_once(world: World) -> None:
    """One of them moves the claim; the other one's push of it is rejected."""
    engines = [world.engine("a", "b", machine=machine) for machine in ("one", "two", "three")]
    for expected in (2, 4):
        with ThreadPoolExecutor() as pool:
            seen = [*pool.map(lambda engine: engine.look(), engines)]
        assert len(world.kaggle.pushes) == expected, seen
        assert [kernel.sessions[-1] is not None for kernel in world.kaggle.kernels.values()] == [True, True]
        for name in "ab":
            world.publish(name, epoch=expected)
            world.end(name)


@pytest.mark.parametrize("age", [0.0, GRACE + 60])
def test_a_sweep_that_died_before_its_push_is_replaced(world: World, age: float) -> None:
    """After the time that a push may take, and not before; that push counts once."""
    engine = world.engine("a")
    experiment = load_experiment(SMALL, {"name": "a"}).model_dump(mode="json")
    claim = Claim(commit=world.commit, experiment=experiment, time=datetime.now(UTC) - timedelta(seconds=age))
    assert move_claim(Refs(world.stores.clone, Credentials()), "detection-a", None, claim)
    seen = engine.look()["a"]
    assert (seen.state, len(world.kaggle.pushes)) == ("running", 1 if age else 0)
    assert world.claims()["a"].pushes == 1
    assert (seen.step == "it is being pushed") != bool(age)


def test_a_sweep_that_is_killed_during_its_push_is_continued_elsewhere(world: World) -> None:
    """Kaggle has its push, the claim does not name it yet: another machine follows that session and counts it."""
    sweep_process = 0

    def kill_the_sweep(_: object) -> Session:
        os.kill(sweep_process, signal.SIGKILL)
        return Session(Act("RUNNING"))

    world.kaggle.session_of = kill_the_sweep
    engine, other = world.engine("a"), world.engine("a", machine="other")
    sweep_process = os.fork()
    if not sweep_process:
        engine.look()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(sweep_process, 0)[1]) == -signal.SIGKILL
    assert (world.claims()["a"].pushed, len(world.kaggle.pushes)) == (0, 1)
    assert other.look()["a"].step == "version 1 is running"
    world.end("a")
    world.kaggle.session_of = lambda _: Session(Act("RUNNING"))
    assert other.look()["a"].node == f"{USER}/train-detection-a/2"
    assert (world.claims()["a"].pushes, world.claims()["a"].pushed) == (2, 2)


def test_a_lost_answer_to_a_push_is_settled(world: World) -> None:
    """The kernel's newest version is the pushed one."""
    world.kaggle.add_fault("SaveKernel", LOST)
    assert world.engine("a").look()["a"].node == f"{USER}/train-detection-a/1"
    assert world.claims()["a"].pushed == 1


def test_a_refused_push_takes_the_claim_back(world: World) -> None:
    """Sessions of other kernels use both slots: it waits; what Kaggle refuses otherwise has failed, and counts not."""
    world.kaggle.kernels = {f"{USER}/other-{number}": Kernel(sessions=[Session(Act("RUNNING"))]) for number in range(2)}
    engine = world.engine("a")
    seen = engine.look()["a"]
    assert (seen.state, "session count" in seen.note) == ("waiting", True)
    assert world.claims() == {}
    world.kaggle.kernels.clear()
    world.kaggle.push_error = "Phone verification is required"
    seen = engine.look()["a"]
    assert (seen.state, "Phone verification" in seen.note) == ("failed", True)
    world.kaggle.push_error = ""
    assert engine.look()["a"].state == "running"
    world.end("a")
    world.kaggle.push_error = "Phone verification is required"
    engine.look()
    assert world.claims()["a"].pushes == 1


def test_a_sweep_waits_until_the_hours_are_renewed(world: World) -> None:
    """And says when that is; then the run goes on."""
    world.kaggle.quota = (30.0, 30.0)
    engine = world.engine("a")
    seen = engine.look()["a"]
    assert seen.state == "waiting"
    assert re.search(r"0\.00h of 30\.00h left until 20\d\d-\d\d-\d\d", seen.note)
    assert world.claims() == {}
    world.kaggle.advance(WEEK)
    assert engine.look()["a"].state == "running"


def test_a_sweep_waits_for_the_secrets_and_refuses_public_ones(world: World) -> None:
    """A dataset in processing, or of which Kaggle says nothing, is waited for; a public one is an error."""
    dataset = world.kaggle.datasets[f"{USER}/kaggle-training-secrets"]
    dataset.is_private = False
    engine = world.engine("a")
    with pytest.raises(KaggleError, match="is public"):
        engine.look()
    dataset.is_private = True
    dataset.states = ["BLOBS_RECEIVED", "READY"]
    assert engine.look()["a"].note == "for the secrets dataset (blobs_received)"
    world.kaggle.add_fault("GetDatasetStatus", Fault(503))
    assert engine.look()["a"].note == "for the secrets dataset (Kaggle does not report its state)"
    assert world.claims() == {}
    assert engine.look()["a"].state == "running"


def test_a_silent_or_public_kernel_is_not_pushed(world: World) -> None:
    """What Kaggle does not report is asked again; a public kernel is an error."""
    engine = world.engine("a")
    world.kaggle.add_fault("GetKernel$", Fault(503))
    assert engine.look()["a"].note == "Kaggle does not report the state of its kernel"
    world.kaggle.kernels[f"{USER}/train-detection-a"] = Kernel(is_private=False)
    with pytest.raises(KaggleError, match="exists and is public"):
        engine.look()
    assert not world.kaggle.pushes


def test_a_run_goes_on_with_its_own_commit(world: World) -> None:
    """When the branch moves on, its notebook, values and commit stay, also for a clone that lacks that commit."""
    world.engine("a").look()
    world.publish("a", epoch=2)
    world.end("a")
    clone = world.stores.clone
    (clone / SOURCES[0]).write_text("# %% tags=['parameters']\n")
    run_git("commit", "--quiet", "--all", "--message=new", cwd=clone)
    run_git("push", "--quiet", "origin", "HEAD:main", cwd=clone)
    new = run_git("rev-parse", "HEAD", cwd=clone)
    run_git("clone", "--quiet", "--depth=1", world.stores.origin.as_uri(), world.stores.folder / "shallow", cwd=clone)
    engine = world.engine("a", commit=new, machine="shallow")
    assert engine.look()["a"].state == "running"
    first, second = (nbformat.reads(pushed["text"], as_version=4) for pushed in world.kaggle.pushes)
    assert second == first
    assert any(f'commit = "{world.commit}"' in cell.source for cell in second.cells)
    assert "repository" in parameters(second)
    world.publish("a", state="finished")
    world.end("a", "COMPLETE")
    assert states(engine.look()) == {"a": "published"}
    assert len(world.kaggle.pushes) == 2


def test_a_kernel_that_was_deleted_is_not_pushed_again(world: World) -> None:
    """Deleting it is the only way to stop a session of Kaggle from afar; `--resume` goes on."""
    world.engine("a").look()
    del world.kaggle.kernels[f"{USER}/train-detection-a"]
    ref, claim = "detection-a", world.claims()["a"]
    refs = Refs(world.stores.clone, Credentials())
    old = claim.model_copy(update={"time": claim.time - timedelta(seconds=GRACE)})
    assert move_claim(refs, ref, read_claims(refs)[ref][0], old)
    seen = world.engine("a").look()["a"]
    assert (seen.state, seen.note.partition(";")[0]) == ("stopped", "its kernel was deleted on Kaggle")
    assert world.engine("a", resume=True).look()["a"].state == "running"


def test_a_silent_remote_is_asked_again(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """A sweep does not end by it; a claim of another version is an error."""
    engine = world.engine("a")
    seen = engine.look()
    moved = world.stores.origin.rename(world.stores.folder / "away")
    assert engine.look() == seen
    assert "It is asked again" in capsys.readouterr().out
    moved.rename(world.stores.origin)
    refs = Refs(world.stores.clone, Credentials())
    claim = refs.write_file("claim.json", "{}", "Claim", world.commit)
    run_git("push", "--quiet", "origin", f"{claim}:{PUSHES}x", cwd=world.stores.clone)
    with pytest.raises(SyncError, match="another version"):
        engine.look()


def test_a_repository_that_kaggle_cannot_clone_is_refused(world: World) -> None:
    """Before anything is asked."""
    engine = Kaggle(world.stores.clone)
    job = Job(load_experiment(SMALL), {}, {"repository": str(world.stores.origin), "commit": world.commit}, "")
    with pytest.raises(RenderError, match="Kaggle cannot clone"):
        engine.start({"a": job}, world.refs)


# ── the command and the workflow ────────────────────────────────────────────────────────────────────────────────────

CACHE = subprocess.run(["uv", "cache", "dir"], capture_output=True, text=True, check=True).stdout.strip()
WORKFLOW = read_yaml(ROOT / "docs/sweep-on-kaggle.yaml")
STEP = WORKFLOW["jobs"]["sweep"]["steps"][-1]
COMMAND = re.compile(r"uv run --no-sync python -m lib sweep (.*?) \|\| ")


def test_the_workflow_is_valid() -> None:
    """GitHub's schema of workflows accepts it."""
    schema = ["check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    command = [sys.executable, "-m", *schema, str(ROOT / "docs/sweep-on-kaggle.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_workflow_runs_one_pass_with_the_permission_to_push() -> None:
    """It is scheduled, one at a time, and its command line is valid; its experiments are those of the project."""
    assert WORKFLOW["on"].keys() >= {"schedule", "workflow_dispatch"}
    assert WORKFLOW["permissions"] == {"contents": "write"}
    assert WORKFLOW["concurrency"]
    found = COMMAND.search(STEP["run"])
    assert found
    words = found[1].replace("$EXPERIMENTS", STEP["env"]["EXPERIMENTS"]).split()
    given = sweep.make_context("sweep", words).params
    assert (given["engine"], given["once"]) == ("kaggle", True)
    assert len(read_sweep([ROOT / file for file in given["experiments"]], {})) == 2


@pytest.mark.parametrize(("status", "expected"), [(0, 0), (3, 0), (1, 1), (2, 1)])
def test_the_workflow_fails_only_with_a_run(status: int, expected: int) -> None:
    """That a run is not published yet is no failure."""
    script = COMMAND.sub(f"(exit {status}) || ", STEP["run"])
    assert subprocess.run(["bash", "-eo", "pipefail", "-c", script], check=False).returncode == expected


@pytest.mark.parametrize(
    "words", [["--on", "kaggle", "--gpus-per-run", "2"], ["--once"], ["--on", "kaggle", "--sandbox", "x"]]
)
def test_an_option_of_the_other_engine_is_refused(words: list[str]) -> None:
    """It would have no effect."""
    done = CliRunner().invoke(app, ["sweep", str(SMALL), *words])
    assert (done.exit_code, "has no meaning with --on" in done.output) == (2, True)


@pytest.mark.slow
def test_the_workflow_trains_to_the_end(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its steps, run as written in a clone over HTTP with a token: it pushes, waits, pushes again, and compares.

    None of the packages of a training is installed.
    """
    clone, token = tmp_path / "actions", "ghs_" + "0123456789" * 4
    world.stores.clone_again("actions")
    copy_project(clone)
    run_git("push", "--quiet", "origin", "HEAD:main", cwd=clone)
    world.commit = run_git("rev-parse", "HEAD", cwd=clone)
    for name, value in {"COUNT": "1", "KEY_0": "http.proxy", "VALUE_0": ""}.items():
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)  # the proxy leads to Kaggle alone
    packages, install = tmp_path / "packages", WORKFLOW["jobs"]["sweep"]["steps"][-2]["run"]
    env = {**os.environ, "EXPERIMENTS": "experiments/000_det_sandbox.yaml", "GITHUB_TOKEN": token}
    env |= {"UV_PROJECT_ENVIRONMENT": str(packages), "UV_CACHE_DIR": CACHE}

    def run(script: str = STEP["run"]) -> str:
        done = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", script], cwd=clone, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(install)
    assert not list(packages.glob("lib/python*/site-packages/torch"))
    with GitHost(tmp_path / "host") as host:
        host.add_token(token)
        run_git("remote", "set-url", "origin", host.add_repository("me/training", world.stores.origin), cwd=clone)
        # as actions/checkout leaves it, for commands of Git alone
        header = f"AUTHORIZATION: basic {b64encode(f'x-access-token:{token}'.encode()).decode()}"
        run_git("config", f"http.{host.url}/.extraheader", header, cwd=clone)
        name = "exp000_sandbox"
        world.publish(name, state="stopped")
        assert "stopped by hand" in run()
        assert not world.kaggle.pushes
        resumed = STEP["run"].replace("--once", "--once --resume")
        assert f"pushed, on {USER}/train-detection-exp000-sandbox/1" in run(resumed)
        assert "version 1 is running" in run()
        world.publish(name, epoch=3)
        world.end("exp000-sandbox")
        assert f"pushed, on {USER}/train-detection-exp000-sandbox/2" in run()
        branch = world.publish(name, state="finished")
        world.end("exp000-sandbox", "COMPLETE")
        output = run()
    assert f"already published as {branch}" in output
    assert "Curves: " in output
    assert len(world.kaggle.pushes) == 2
