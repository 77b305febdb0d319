"""Preflight tries everything that a run needs, and shows every error in one table."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
import wandb
import wandb_emulator
from conftest import ROOT, Stores, run_git
from wandb_emulator import WandbEmulator

from lib.errors import PreflightError
from lib.experiment.load import load_experiment
from lib.experiment.schema import Experiment
from lib.kaggle.host import Gpu, Host
from lib.remotes.clone import configure_dvc
from lib.remotes.credentials import Credentials
from lib.sandbox.dataset import draw_dataset
from lib.session import Session
from lib.train.launch import prepare_library
from lib.train.preflight import (
    Line,
    _check_batch,
    _check_committed,
    _check_session,
    _check_weights,
    judge_gpus,
    preflight,
    show_preflight,
    stop_on_errors,
)

SMALL = load_experiment(ROOT / "experiments/000_det_sandbox.yaml")
T4 = {"name": "Tesla T4", "memory": 15 * 2**30, "capability": "sm_75", "works": True}
BUILD = {"torch": "2.10.0+cu128", "cuda": "12.8", "builds": ["sm_75", "sm_80", "sm_90"]}


@pytest.fixture
def session(stores: Stores, tmp_path: Path) -> Session:
    """Return a session whose clone is ready to train."""
    from dvc.repo import Repo

    draw_dataset(stores.clone / SMALL.dataset, "detection", counts={"train": 2, "val": 1, "test": 1}, size=64)
    with Repo(str(stores.clone)) as repo:
        repo.add([str(stores.clone / SMALL.dataset)])
        repo.push()
    run_git("add", "--all", "data", cwd=stores.clone)
    run_git("commit", "--quiet", "--message=dataset", cwd=stores.clone)
    run_git("push", "--quiet", "origin", "HEAD:main", cwd=stores.clone)
    working, scratch = tmp_path / "working", tmp_path / "scratch"
    for folder in (working, scratch):
        folder.mkdir()
    configure_dvc(stores.clone, scratch, Credentials())
    prepare_library(scratch)
    return Session(stores.clone, working, scratch, SMALL)


def states(lines: list[Line]) -> dict[str, str]:
    """Return the state of each check by its name; of several lines with one name, the last."""
    return {line.name: line.state for line in lines}


def with_model(**model: object) -> Experiment:
    """Return the small experiment with other values of `model`."""
    return load_experiment(ROOT / "experiments/000_det_sandbox.yaml", {f"model.{k}": v for k, v in model.items()})


def test_a_run_that_can_start_has_no_errors_and_leaves_no_traces(stores: Stores, session: Session) -> None:
    """Every check has its line, and the remotes are unchanged."""
    before = stores.refs(), stores.objects()
    lines = preflight(session)
    assert set(states(lines).values()) <= {"ok", "warning"}, show_preflight(lines)
    names = {"GPU", "Git remote", "DVC remote", "dataset", "weights", "W&B", "working folder", "session"}
    assert names <= set(states(lines))
    stop_on_errors(lines)
    assert (stores.refs(), stores.objects()) == before
    assert "4 files" not in show_preflight(lines)
    assert "9 files" in show_preflight(lines)  # four images, their labels, data.yaml


def test_all_errors_are_reported_together_with_their_remedies(stores: Stores, session: Session) -> None:
    """A refused branch, a dataset that was never pushed and missing weights, in one table and one error."""
    stores.write_hook(
        "pre-receive", 'while read o n r; do case "$r" in refs/heads/*) echo GH006 >&2; exit 1;; esac; done'
    )
    shutil.rmtree(stores.storage / "files")
    lines = preflight(replace(session, experiment=with_model(pretrained="nowhere.pt")))
    wrong = {name for name, state in states(lines).items() if state == "error"}
    assert wrong == {"Git remote", "dataset", "weights"}
    with pytest.raises(PreflightError) as caught:
        stop_on_errors(lines)
    for words in ("GH006", "not on the DVC remote", "nowhere.pt"):
        assert words in show_preflight(lines)
    for words in ("branch rules", "dvc push", "attach the checkpoint"):
        assert words in caught.value.remedy
    assert "nothing was pulled" in caught.value.state


def test_a_check_that_crashes_is_an_error_and_the_others_still_run(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The free disk space cannot be read; every other check is reported, and no credential is shown."""
    secret = Credentials(github_token="ghp_canary_0123456789")

    def crash(_folder: object) -> None:
        raise ZeroDivisionError("ghp_canary_0123456789")

    monkeypatch.setattr(shutil, "disk_usage", crash)
    lines = preflight(replace(session, credentials=secret))
    assert states(lines)["disk"] == "error"
    assert states(lines)["weights"] == "ok"
    assert "canary" not in show_preflight(lines)


def test_preflight_commits_what_the_run_will_commit(stores: Stores, session: Session) -> None:
    """The files have the run's own folder and names, and the messages its title."""
    seen = stores.folder / "seen"
    show = 'git ls-tree -r --name-only "$new"; git log -1 --format=%s "$new"'
    stores.write_hook(
        "post-receive", f"while read old new ref; do git cat-file -e $new && {{ {show}; }}; done >> {seen}"
    )
    preflight(session)
    lines = seen.read_text().splitlines()
    assert f"{SMALL.artifacts}/train/weights/best.pt.dvc" in lines
    assert f"{SMALL.about.title}: {SMALL.name}, rehearsal [skip ci]" in lines


def test_an_entity_of_somebody_else_is_a_warning(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is recorded offline, and must not stop for it."""
    tracked = SMALL.model_copy(
        update={"wandb": SMALL.wandb.model_copy(update={"enabled": True, "entity": "their-team"})}
    )
    with WandbEmulator() as service:
        monkeypatch.setenv("WANDB_BASE_URL", service.url)
        key = Credentials(wandb_api_key=wandb_emulator.KEY)
        lines = preflight(replace(session, experiment=tracked, credentials=key))
    wandb.teardown()
    (line,) = (line for line in lines if line.name == "W&B")
    assert (line.state, "their-team" in line.found, "a-team" in line.remedy) == ("warning", True, True)


@pytest.mark.parametrize(
    ("batch", "multi_gpu", "state"),
    [(1, True, "error"), (3, True, "warning"), (4, True, None), (1, False, None)],
)
def test_a_batch_that_two_gpus_cannot_share_is_reported(
    session: Session, batch: int, multi_gpu: bool, state: str | None
) -> None:
    """Such a training would fail with an empty batch on a GPU, or use fewer images than the experiment sets."""
    keys = {"training.batch_size": batch, "hardware.multi_gpu": multi_gpu}
    experiment = load_experiment(ROOT / "experiments/000_det_sandbox.yaml", keys)
    host = replace(session.host, gpus=(Gpu("Tesla T4", 15360),) * 2)
    assert states(list(_check_batch(replace(session, experiment=experiment, host=host)))).get("batch") == state


def line_of(hours: float | None, *, on_kaggle: bool, elapsed: float = 2.0) -> Line:
    """Return the line about a session that has run for `elapsed` hours, where `session.max_hours` is `hours`."""
    experiment = SMALL.model_copy(update={"session": SMALL.session.model_copy(update={"max_hours": hours})})
    begun = time.monotonic() - elapsed * 3600
    given = Session(Path(), Path(), Path(), experiment, host=Host(on_kaggle=on_kaggle), begun=begun)
    (line,) = _check_session(given)
    return line


@pytest.mark.parametrize("on_kaggle", [True, False])
def test_the_time_that_an_epoch_may_take_is_shown(*, on_kaggle: bool) -> None:
    """Training ends after `session.max_hours`, less the time already spent, on Kaggle and elsewhere."""
    session, epochs = line_of(11.0, on_kaggle=on_kaggle), SMALL.training.epochs
    assert session.state == "ok"
    expected = f"9.0 h left to train: {epochs} epochs fit if one takes less than {540 / epochs:.1f} min"
    assert expected in session.found


def test_a_session_that_ends_soon_is_a_warning_on_kaggle() -> None:
    """A new session has more time; elsewhere a short session is what the experiment sets."""
    late = line_of(11.0, on_kaggle=True, elapsed=10.5)
    assert (late.state, "new session" in late.remedy) == ("warning", True)
    assert line_of(0.5, on_kaggle=False, elapsed=0.0).state == "ok"
    assert line_of(None, on_kaggle=False).found == "session.max_hours is null, and this machine ends no session"


@pytest.mark.parametrize("hours", [None, 12.0, 20.0])
def test_a_session_without_a_margin_is_a_warning_on_kaggle(hours: float | None) -> None:
    """Training could take all that is left of the twelve hours, with no time for evaluation and publication."""
    session = line_of(hours, on_kaggle=True)
    assert session.state == "warning"
    assert "10.0 h left to train" in session.found
    assert f"session.max_hours is {'null' if hours is None else hours}" in session.found
    assert "session.max_hours to 11" in session.remedy


def test_a_missing_gpu_is_an_error_on_kaggle(session: Session) -> None:
    """The notebook was rendered for T4 x2, and the machine has none."""
    host = Host(on_kaggle=True)
    lines = preflight(replace(session, host=host, accelerator="t4x2"))
    assert states(lines)["GPU"] == "error"


def test_a_gpu_that_torch_cannot_use_is_an_error(session: Session) -> None:
    """The driver sees one, but the installed torch has no CUDA."""
    host = Host((Gpu("Tesla T4", 15360),), on_kaggle=True)
    lines = preflight(replace(session, host=host, accelerator="t4x2"))
    assert any(line.name == "GPU" and line.state == "error" and "the driver sees 1" in line.found for line in lines)


def test_two_t4_that_compute_are_ok() -> None:
    """Each GPU has its own line."""
    lines = list(judge_gpus({**BUILD, "gpus": [T4, T4]}, 2, ("T4", "T4"), multi_gpu=True))
    assert [(line.name, line.state) for line in lines] == [("GPU 0", "ok"), ("GPU 1", "ok")]


def test_one_t4_instead_of_two_is_a_warning() -> None:
    """Training runs on the one that is there."""
    lines = list(judge_gpus({**BUILD, "gpus": [T4]}, 1, ("T4", "T4"), multi_gpu=True))
    assert [line.state for line in lines] == ["ok", "warning"]
    assert "2 x T4" in lines[1].found


def test_a_p100_that_this_torch_has_no_kernels_for_is_an_error() -> None:
    """The line lists the GPUs that torch was built for."""
    p100 = {"name": "Tesla P100-PCIE-16GB", "memory": 16 * 2**30, "capability": "sm_60", "error": "no kernel image"}
    (line,) = judge_gpus({**BUILD, "gpus": [p100]}, 1, ("P100",), multi_gpu=True)
    assert line.state == "error"
    assert "sm_60" in line.found
    assert "sm_75, sm_80, sm_90" in line.found
    assert "T4 x2" in line.remedy


def test_a_gpu_that_computes_wrongly_is_an_error() -> None:
    """The product of two matrices is wrong."""
    (line,) = judge_gpus({**BUILD, "gpus": [{**T4, "works": False}]}, 1, (), multi_gpu=True)
    assert line.state == "error"


def test_an_address_that_only_this_clone_has_is_an_error_and_another_one_a_warning(stores: Stores) -> None:
    """The run's own clone has what was committed; the preflight of another clone finds all of it."""
    (stores.clone / ".dvc/config.local").write_text("['remote \"storage\"']\n    url = /near\n")
    (line,) = _check_committed(stores.clone)
    assert (line.state, "remote.storage.url differs" in line.found) == ("warning", True)
    (stores.clone / ".dvc/config").write_text("")
    run_git("commit", "--quiet", "--all", "--message=nothing", cwd=stores.clone)
    (stores.clone / ".dvc/config.local").write_text(
        "[core]\n    remote = storage\n['remote \"storage\"']\n    url = /x\n"
    )
    (line,) = _check_committed(stores.clone)
    assert (line.state, "commit .dvc/config" in line.remedy) == ("error", True)


def test_preflight_by_hand_leaves_the_clone_unchanged(stores: Stores, session: Session, tmp_path: Path) -> None:
    """`python -m lib preflight` works in any clone: it prints the table, and exits with 1 if there is an error."""
    local = stores.clone / ".dvc/config.local"
    local.unlink()
    secrets = tmp_path / "secrets.json"
    secrets.write_text("{}")
    shutil.copytree(ROOT / "experiments", stores.clone / "experiments")
    command = [sys.executable, "-m", "lib", "preflight", "experiments/000_det_sandbox.yaml", "--secrets", str(secrets)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=stores.clone, env=environment, capture_output=True, text=True)

    before = run_git("status", "--porcelain", cwd=stores.clone), stores.refs(), stores.objects()
    done = run()
    assert done.returncode == 0, done.stderr
    assert "ok       dataset" in done.stdout
    assert (run_git("status", "--porcelain", cwd=stores.clone), stores.refs(), stores.objects()) == before
    assert not local.exists()
    shutil.rmtree(stores.storage / "files")
    done = run()
    assert done.returncode == 1
    assert "ERROR    dataset" in done.stdout
    assert "Error: dataset: " in done.stderr


def test_lack_of_space_is_reported_with_its_sizes(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working folder and the DVC remote need room for the publication, the scratch folder for the dataset."""
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=20 * 2**20))
    lines = preflight(session)
    found = {line.name: line for line in lines if line.state != "ok"}
    assert found["working folder"].state == found["DVC remote"].state == "error"
    assert "20.0 MiB free, about 60.0 MiB needed" in found["working folder"].found
    assert found["DVC remote"].found == "20.0 MiB left, and a publication sends about 30.0 MiB"
    assert "free space" in found["DVC remote"].remedy
    assert found["scratch folder"].state == "warning"


def test_published_weights_that_cannot_be_reached_are_an_error(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Preflight requests only the weights' address, without a download; the remedy lists the alternatives."""
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # no proxy listens there: no request leaves the machine
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)
    (line,) = _check_weights(replace(session, experiment=with_model(pretrained=True)))
    assert line.state == "error"
    assert "/yolo11n.pt cannot be reached" in line.found
    assert "turn internet on" in line.remedy
    assert "model.pretrained" in line.remedy
