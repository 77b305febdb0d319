"""`render.py --push` and `python -m lib watch`, with the real kaggle client and an emulated Kaggle on loopback."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from click.testing import CliRunner
from conftest import ROOT, copy_project, run_git
from git_host_emulator import GitHost
from kaggle_emulator import (
    KEY,
    LOST,
    THROTTLED,
    TOKEN,
    USER,
    Act,
    Dataset,
    Fault,
    KaggleEmulator,
    Kernel,
    Session,
    use_account,
)

from lib.cli.app import app
from lib.errors import KaggleError, RunError
from lib.experiment.load import load_experiment
from lib.experiment.modules import MODULES
from lib.kaggle.client import client_user
from lib.kaggle.kernel import (
    gpu_quota,
    kernel_metadata,
    kernel_name,
    kernel_title,
    push_kernel,
    push_rendered,
    require_pushable,
)
from lib.kaggle.notebook import configured_user
from lib.kaggle.watch import watch_kernel

KEY_OF_EXPERIMENT = "detection-exp001-yolo11s-baseline"
KERNEL = f"{USER}/train-{KEY_OF_EXPERIMENT}"
SECRETS = f"{USER}/kaggle-training-secrets"
BRANCH = "kaggle-train-detection-exp001-yolo11s-baseline-20260102-030405"
COMMIT = "0123456789" * 4
GIVEN = ["-p", "repository", "https://example.com/me/training.git", "-p", "commit", COMMIT]


@pytest.fixture
def kaggle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KaggleEmulator]:
    """Return an emulated Kaggle with a user, the user's key in the environment, and a private secrets dataset."""
    with KaggleEmulator() as service:
        service.datasets[SECRETS] = Dataset()
        use_account(service, tmp_path, monkeypatch)
        yield service


def run_python(*words: str) -> subprocess.CompletedProcess[str]:
    """Run one of the project's commands as a user does."""
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=300)


def write_folder(folder: Path, **changed: object) -> Path:
    """Write the smallest folder that can be pushed."""
    metadata = kernel_metadata(MODULES["detection"], KEY_OF_EXPERIMENT, "t4x2", USER, "") | changed
    (folder / "kernel-metadata.json").write_text(json.dumps(metadata))
    (folder / str(metadata["code_file"])).write_text(nbformat.writes(nbformat.v4.new_notebook()))
    return folder


def follow(kaggle: KaggleEmulator, *acts: Act) -> tuple[str | None, list[str]]:
    """Follow a run of these acts; return the branch and the printed lines."""
    kaggle.kernels[KERNEL] = Kernel(sessions=[Session(*acts)])
    lines: list[str] = []
    return watch_kernel(KERNEL, every=0.5, say=lines.append), lines[1:]


def without_times(expected: list[str]) -> list[str]:
    """Return the printed lines without the times of states."""
    return [line[len("[00:00:00] ") :] if line.startswith("[0") else line for line in expected]


# ── pushing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_command_renders_and_pushes(kaggle: KaggleEmulator, tmp_path: Path) -> None:
    """Kaggle receives the rendered notebook, private, with two T4, internet and the secrets; its address is printed."""
    done = run_python("render.py", "detection", "--push", "--output", str(tmp_path / "out"), *GIVEN)
    assert done.returncode == 0, done.stderr
    (pushed,) = kaggle.pushes
    assert {name: pushed[name] for name in ("slug", "isPrivate", "machineShape", "enableGpu", "enableInternet")} == {
        "slug": KERNEL,
        "isPrivate": True,
        "machineShape": "NvidiaTeslaT4",
        "enableGpu": True,
        "enableInternet": True,
    }
    assert pushed["datasetDataSources"] == [SECRETS]
    rendered = nbformat.read(tmp_path / "out/train_module_1_detection.ipynb", as_version=4)
    assert nbformat.reads(pushed["text"], as_version=4) == rendered
    assert f"Address:  https://www.kaggle.com/code/{KERNEL}" in done.stdout
    assert "GPU:      21.50h of 30.00h left" in done.stdout
    assert f"python -m lib watch {KERNEL}/1" in done.stdout
    assert KEY not in done.stdout + done.stderr


def test_a_push_whose_session_would_leave_nothing_is_refused(kaggle: KaggleEmulator, tmp_path: Path) -> None:
    """With fewer GPU hours left than an epoch needs; the remedy is to wait until a time, or `--anyway`."""
    run_python("render.py", "detection", "--output", str(tmp_path), "--kaggle-user", USER, *GIVEN)
    kaggle.quota = (29.6, 30.0)
    with pytest.raises(KaggleError, match=r"0\.4 GPU hours are left, and a session needs about 0\.5") as caught:
        push_rendered(tmp_path, 0.5)
    assert re.search(r"renewed \(\d{4}-\d\d-\d\dT.*--anyway", caught.value.remedy)
    assert not kaggle.pushes
    push_rendered(tmp_path, 0.3)
    assert len(kaggle.pushes) == 1


def test_a_push_says_how_long_the_training_will_take(
    kaggle: KaggleEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the published runs of its repository say; a push without the hours for an epoch needs `--anyway`."""
    origin, clone, output = (tmp_path / name for name in ("origin.git", "clone", "out"))
    run_git("init", "--quiet", "--bare", "--initial-branch=main", origin, cwd=tmp_path)
    run_git("clone", "--quiet", origin, clone, cwd=tmp_path)
    copy_project(clone)
    run_git("push", "--quiet", "origin", "HEAD:main", cwd=clone)
    branch = "kaggle-train-detection-exp001-yolo11s-baseline-20260102-030405"
    values = load_experiment(clone / "experiments/001_det_baseline.yaml").model_dump(mode="json")
    record = {
        "branch": branch, "commit": COMMIT, "experiment": values, "seconds": {"training": 36000.0},
        "machine": {"kaggle": True, "gpus": [{"name": "Tesla T4", "memory": 15360}] * 2},
    }  # fmt: skip
    made = clone / "artifacts/detection/exp001_yolo11s_baseline"
    (made / "train").mkdir(parents=True)
    (made / "run.json").write_text(json.dumps(record))
    (made / "train/metrics.json").write_text('{"epochs": 100}')
    run_git("add", "--all", cwd=clone)
    run_git("commit", "--quiet", "--message=run", cwd=clone)
    run_git("push", "--quiet", "origin", f"HEAD:{branch}", cwd=clone)
    run_git("reset", "--quiet", "--hard", "origin/main", cwd=clone)
    for name, value in {"COUNT": "1", "KEY_0": "http.proxy", "VALUE_0": ""}.items():
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)  # the proxy leads to Kaggle alone
    kaggle.quota = (29.95, 30.0)
    with GitHost(tmp_path / "host") as host:
        run_git("remote", "set-url", "origin", host.add_repository("me/training", origin, public=True), cwd=clone)
        command = [sys.executable, "render.py", "detection", "--push", "--output", str(output)]
        refused, pushed = (
            subprocess.run([*command, *more], cwd=clone, capture_output=True, text=True, timeout=300)
            for more in ([], ["--anyway"])
        )
    assert f"Duration: about 10.0 GPU hours in 1 session: 100 epochs of 6 min 00 s (as in {branch})" in refused.stdout
    assert refused.returncode == 1
    assert "a session needs about 0.1 to get beyond its newest checkpoint" in refused.stderr
    assert pushed.returncode == 0, pushed.stderr
    assert len(kaggle.pushes) == 1


def test_a_run_that_was_stopped_is_pushed_with_resume_alone(
    kaggle: KaggleEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names its stop, and nothing reaches Kaggle."""
    origin, clone = tmp_path / "origin.git", tmp_path / "clone"
    run_git("init", "--quiet", "--bare", "--initial-branch=main", origin, cwd=tmp_path)
    run_git("clone", "--quiet", origin, clone, cwd=tmp_path)
    copy_project(clone)
    run_git("push", "--quiet", "origin", "HEAD:main", f"HEAD:refs/stops/{KEY_OF_EXPERIMENT}", cwd=clone)
    for name, value in {"COUNT": "1", "KEY_0": "http.proxy", "VALUE_0": ""}.items():
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)  # the proxy leads to Kaggle alone
    with GitHost(tmp_path / "host") as host:
        run_git("remote", "set-url", "origin", host.add_repository("me/training", origin, public=True), cwd=clone)
        command = [sys.executable, "render.py", "detection", "--push", "--output", str(tmp_path / "out")]
        refused, pushed = (
            subprocess.run([*command, *more], cwd=clone, capture_output=True, text=True, timeout=300)
            for more in ([], ["--resume"])
        )
    assert refused.returncode == 1
    assert f"{KEY_OF_EXPERIMENT} was asked to stop (refs/stops/{KEY_OF_EXPERIMENT}, " in refused.stderr
    assert "push with --resume" in refused.stderr
    assert pushed.returncode == 0, pushed.stderr
    assert len(kaggle.pushes) == 1


def test_pushing_and_running_here_exclude_each_other(tmp_path: Path) -> None:
    """`--push` with `--run` is an error, and nothing is written."""
    done = run_python("render.py", "detection", "--push", "--run", "--output", str(tmp_path / "out"))
    assert (done.returncode, "leave one of them out" in done.stderr) == (1, True)
    assert not (tmp_path / "out").exists()


def test_a_repository_that_kaggle_cannot_reach_is_not_pushed(kaggle: KaggleEmulator, tmp_path: Path) -> None:
    """A repository that is a path of this machine is an error before Kaggle is contacted."""
    where = ["-p", "repository", str(tmp_path), "-p", "commit", COMMIT, "--output", str(tmp_path / "out")]
    done = run_python("render.py", "detection", "--push", *where)
    assert (done.returncode, f"Kaggle cannot clone {tmp_path}" in done.stderr) == (1, True)
    assert kaggle.requests == []


def test_a_missing_key_is_one_error(kaggle: KaggleEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names where to create a key; a user name alone is not enough."""
    use_account(kaggle, tmp_path, monkeypatch, KAGGLE_USERNAME=USER)
    with pytest.raises(KaggleError, match="has no key") as caught:
        client_user()
    assert "KAGGLE_API_TOKEN" in caught.value.remedy


def test_a_key_that_kaggle_rejects_is_one_error(
    kaggle: KaggleEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rejected key is an error before anything is pushed, and is not shown."""
    use_account(kaggle, tmp_path, monkeypatch, KAGGLE_USERNAME=USER, KAGGLE_KEY="revoked0" * 4)
    with pytest.raises(KaggleError, match="rejects the one it has") as caught:
        require_pushable(KERNEL, SECRETS, say=print)
    assert "revoked0" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("account", ["a token", "kaggle.json"])
def test_the_user_is_the_owner_of_the_clients_key(
    kaggle: KaggleEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, account: str
) -> None:
    """The owner of a token is asked from Kaggle; that of kaggle.json is in the file."""
    if account == "a token":
        use_account(kaggle, tmp_path, monkeypatch, KAGGLE_API_TOKEN=TOKEN)
    else:
        (tmp_path / "kaggle.json").write_text(json.dumps({"username": USER, "key": KEY}))
        use_account(kaggle, tmp_path, monkeypatch, KAGGLE_CONFIG_DIR=str(tmp_path))
    assert client_user() == USER


@pytest.mark.parametrize("place", ["KAGGLE_API_TOKEN", ".kaggle/access_token"])
def test_a_token_of_two_lines_is_one_error_without_the_token(
    kaggle: KaggleEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """The client's HTTP library quotes the header in a traceback; neither of the two is shown."""
    token, account = f"{TOKEN}\nsecond-line-of-it\n", {"KAGGLE_CONFIG_DIR": str(tmp_path / ".kaggle")}
    if place.startswith("."):
        (tmp_path / ".kaggle").mkdir()
        (tmp_path / place).write_text(token)
    else:
        account[place] = token
    use_account(kaggle, tmp_path, monkeypatch, **account)
    with pytest.raises(KaggleError, match="the kaggle client's key holds a line break") as caught:
        client_user()
    shown = "".join(traceback.format_exception(caught.value))
    assert TOKEN not in shown
    assert "second-line-of-it" not in shown
    assert "urllib3" not in shown


def test_a_key_file_with_a_byte_order_mark_is_read(
    kaggle: KaggleEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An editor on Windows writes one; the client alone would find no key."""
    (tmp_path / "kaggle.json").write_text(json.dumps({"username": USER, "key": KEY}), encoding="utf-8-sig")
    use_account(kaggle, tmp_path, monkeypatch, KAGGLE_CONFIG_DIR=str(tmp_path))
    assert client_user() == configured_user() == USER


def test_a_public_kernel_is_not_overwritten(kaggle: KaggleEmulator) -> None:
    """A push over a public kernel is an error: its log would be public."""
    kaggle.kernels[KERNEL] = Kernel(is_private=False)
    with pytest.raises(KaggleError, match=f"the kernel {KERNEL} exists and is public"):
        require_pushable(KERNEL, SECRETS, say=print)


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        pytest.param(Dataset(is_private=False), f"the dataset {SECRETS} is public", id="public"),
        pytest.param(None, f"there is no dataset {SECRETS}", id="missing", marks=pytest.mark.slow),
        pytest.param(Dataset(files=["secrets.txt"]), "has no file secrets.json", id="empty", marks=pytest.mark.slow),
    ],
)
def test_an_unusable_secrets_dataset_is_rejected(
    kaggle: KaggleEmulator, dataset: Dataset | None, expected: str
) -> None:
    """A public, missing or incomplete secrets dataset is an error before the push."""
    kaggle.kernels[KERNEL] = Kernel()
    kaggle.datasets = {} if dataset is None else {SECRETS: dataset}
    with pytest.raises(KaggleError, match=expected) as caught:
        require_pushable(KERNEL, SECRETS, say=print)
    assert caught.value.state == "nothing was pushed."


def test_an_invalid_dataset_name_is_rejected(kaggle: KaggleEmulator) -> None:
    """An invalid name is an error before Kaggle is contacted."""
    with pytest.raises(KaggleError, match="--secrets-dataset 'secrets' is not the name"):
        require_pushable(KERNEL, "secrets", say=print)
    assert kaggle.requests == []


@pytest.mark.slow
def test_a_failing_kaggle_is_not_taken_for_a_missing_kernel(kaggle: KaggleEmulator) -> None:
    """If Kaggle does not report whether the kernel is private, nothing is pushed."""
    kaggle.add_fault("GetKernel", Fault(503))
    with pytest.raises(KaggleError, match=f"does not report the state of {KERNEL}"):
        require_pushable(KERNEL, SECRETS, say=print)


def test_a_rejected_push_is_an_error_although_the_client_exits_with_0(kaggle: KaggleEmulator, tmp_path: Path) -> None:
    """The error quotes Kaggle's message; that all sessions are in use has a remedy of its own."""
    kaggle.kernels = {f"{USER}/other-{number}": Kernel(sessions=[Session(Act("RUNNING"))]) for number in range(2)}
    expected = r"refused the push .* Maximum batch GPU session count of 2 reached"
    with pytest.raises(KaggleError, match=expected) as caught:
        push_kernel(write_folder(tmp_path), KERNEL, 0)
    assert "wait until one of your sessions has ended" in caught.value.remedy


@pytest.mark.slow
def test_a_push_without_its_secrets_is_an_error(kaggle: KaggleEmulator, tmp_path: Path) -> None:
    """A kernel that runs without its secrets is an error, which names where to stop it."""
    kaggle.unusable = [SECRETS]
    with pytest.raises(KaggleError, match="did not attach the secrets dataset") as caught:
        push_kernel(write_folder(tmp_path), KERNEL, 0)
    assert f"https://www.kaggle.com/code/{KERNEL}" in caught.value.state


@pytest.mark.parametrize(
    ("fault", "silent", "expected"),
    [
        pytest.param(LOST, False, "", id="accepted"),
        pytest.param(THROTTLED, False, "did not accept", id="throttled"),
        pytest.param(THROTTLED, True, "did not confirm", id="nobody knows", marks=pytest.mark.slow),
    ],
)
def test_a_push_without_an_answer_is_settled_by_the_newest_version(
    kaggle: KaggleEmulator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    *,
    silent: bool,
    expected: str,
) -> None:
    """A version that is newer than the one before is the pushed one; if the last question fails, too, nobody knows."""
    monkeypatch.setattr("lib.kaggle.kernel.POLL", 0.1)
    monkeypatch.setattr("lib.kaggle.kernel.SETTLING", 2)
    kaggle.kernels[KERNEL] = Kernel()
    kaggle.add_fault("SaveKernel", fault)
    kaggle.add_fault("GetKernel$", Fault(503), times=99 if silent else 0, after=1)
    if not expected:
        pushed, report = push_kernel(write_folder(tmp_path), KERNEL, 1)
        assert (pushed, "Kaggle's answer was lost" in report) == (f"{KERNEL}/2", True)
        return
    with pytest.raises(KaggleError, match=f"{expected} the push") as caught:
        push_kernel(write_folder(tmp_path), KERNEL, 1)
    assert ("its newest version is still 1" in caught.value.state) != silent
    assert ("not known whether" in caught.value.state) == silent


@pytest.mark.parametrize(
    ("states", "refused"),
    [
        (["COMPLETE", "QUEUED", "COMPLETE"], "version 2 of .* is queued"),
        pytest.param(["CANCEL_REQUESTED"], "version 1 of .* is being cancelled", marks=pytest.mark.slow),
        (["COMPLETE", None, "ERROR", "CANCEL_ACKNOWLEDGED"], ""),
    ],
)
def test_a_kernel_with_an_active_version_is_not_pushed(
    kaggle: KaggleEmulator, states: list[str | None], refused: str
) -> None:
    """Also if it is not the newest; the error names the address, and how to follow and to stop it."""
    kaggle.kernels[KERNEL] = Kernel(sessions=[Session(Act(state)) if state else None for state in states])
    if not refused:
        assert require_pushable(KERNEL, SECRETS, say=print) == len(states)
        return
    with pytest.raises(KaggleError, match=refused) as caught:
        require_pushable(KERNEL, SECRETS, say=print)
    for named in (f"https://www.kaggle.com/code/{KERNEL}", f"lib watch {KERNEL}/", "python -m lib stop EXPERIMENT"):
        assert named in caught.value.remedy


@pytest.mark.parametrize("last", ["READY", pytest.param("FAILED", marks=pytest.mark.slow)])
def test_a_secrets_dataset_in_processing_is_waited_for(
    kaggle: KaggleEmulator, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    """A push says so and waits, since Kaggle would mount the old version or none; a failed version is an error."""
    monkeypatch.setattr("lib.kaggle.kernel.POLL", 0.1)
    kaggle.datasets[SECRETS].states = ["BLOBS_RECEIVED", last]
    lines: list[str] = []
    if last == "READY":
        assert require_pushable(KERNEL, SECRETS, say=lines.append) == 0
    else:
        with pytest.raises(KaggleError, match=f"dataset {SECRETS} is not ready: Kaggle reports 'failed'"):
            require_pushable(KERNEL, SECRETS, say=lines.append)
    (said,) = lines
    assert "still processing" in said


@pytest.mark.slow
def test_a_dataset_that_stays_in_processing_is_refused(kaggle: KaggleEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The push waits a few minutes at most."""
    monkeypatch.setattr("lib.kaggle.kernel.PROCESSING", 0.0)
    kaggle.datasets[SECRETS].states = ["REPROCESSING"]
    with pytest.raises(KaggleError, match="is not ready: Kaggle reports 'reprocessing'") as caught:
        require_pushable(KERNEL, SECRETS, say=print)
    assert caught.value.state == "nothing was pushed."


@pytest.mark.parametrize("push", [False, True])
def test_the_retired_p100_is_rendered_with_a_warning_and_never_pushed(
    kaggle: KaggleEmulator, tmp_path: Path, *, push: bool
) -> None:
    """Both say that a push would run on T4 x2; a refused push writes nothing and asks Kaggle nothing."""
    words = ["render.py", "detection", "--accelerator", "p100", "--output", str(tmp_path / "out"), *GIVEN]
    done = run_python(*words, *(["--push"] if push else []))
    assert done.returncode == push, done.stderr
    assert "Kaggle has retired the P100: a push would run on T4 x2." in (done.stderr if push else done.stdout)
    assert (tmp_path / "out").exists() != push
    assert kaggle.requests == []


@pytest.mark.slow
def test_warnings_of_the_client_are_shown(kaggle: KaggleEmulator, tmp_path: Path) -> None:
    """A changed slug, a retired GPU and the name that Kaggle chose are shown."""
    folder = write_folder(tmp_path, title="Another Name", machine_shape="NvidiaTeslaP100")
    name, pushed = push_kernel(folder, KERNEL, 0)
    assert name == f"{USER}/another-name/1"
    assert "title does not resolve to the specified id" in pushed
    assert "is retired" in pushed
    assert f"under another name than {KERNEL}" in pushed


@pytest.mark.slow
def test_an_unknown_quota_is_left_out(kaggle: KaggleEmulator) -> None:
    """A push does not need the quota."""
    kaggle.quota = None
    assert gpu_quota() is None


@pytest.mark.parametrize(
    ("key", "title"),
    [
        (KEY_OF_EXPERIMENT, "Train detection exp001 yolo11s baseline"),
        ("a-1", "Train a 1"),
        ("localization-" + "x" * 31, "Train localization " + "x" * 31),  # 50 characters
        ("localization-" + "x" * 32, "Train localization " + "x" * 22 + " f3ff8dfd"),
        ("localization-" + "x" * 33, "Train localization " + "x" * 22 + " 3141d770"),
        ("localization-" + "x" * 21 + "-" + "y" * 20, "Train localization " + "x" * 21 + " a2a76bc1"),
    ],
)
def test_the_title_of_an_experiment_is_its_own_and_makes_the_slug(key: str, title: str) -> None:
    """Kaggle derives a kernel's slug from its title of 5 to 50 characters; a cut title ends in a hash of the key."""
    from slugify import slugify

    assert kernel_title(key) == title
    assert 5 <= len(title) <= 50
    metadata = kernel_metadata(MODULES["detection"], key, "t4x2", USER, "")
    assert metadata["id"] == kernel_name(key, USER) == f"{USER}/{slugify(title)}"


# ── following ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_is_followed_to_its_end(kaggle: KaggleEmulator) -> None:
    """States, and each line of the log once, are shown despite a cut stream and a failed request."""
    acts = [
        Act("QUEUED"),
        Act("RUNNING", "step 1\n  5%\r 50%\r100%\nstep 2\n"),
        Act("COMPLETE", f"Branch:    {BRANCH}\n"),
    ]
    kaggle.kernels[KERNEL] = Kernel(sessions=[Session(Act("ERROR", "an older run\n")), Session(*acts)])
    kaggle.stream_cuts = 1
    kaggle.add_fault("GetKernelSessionStatus", Fault(502), after=1)
    done = run_python("-m", "lib", "watch", "detection", "--every", "1.5")
    assert done.returncode == 0, done.stderr
    first, *lines, published, fetch = done.stdout.splitlines()
    assert first.endswith(f"https://www.kaggle.com/code/{KERNEL}")
    queued, trouble, *lines = without_times(lines)
    assert queued == "queued"
    assert trouble.startswith("no answer: the service has trouble")
    assert lines == ["running", "step 1", "100%", "step 2", f"Branch:    {BRANCH}", "complete"]
    assert published == f"The run is complete, and published as {BRANCH}."
    assert fetch == f"Download it with: python -m lib fetch {BRANCH}"
    assert kaggle.requests.count("LogStream") >= 2


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (Act("ERROR", reason="Notebook timeout"), "error"),
        pytest.param(Act("CANCEL_ACKNOWLEDGED"), "cancelled", marks=pytest.mark.slow),
    ],
)
def test_a_failed_or_cancelled_run_is_an_error(kaggle: KaggleEmulator, end: Act, expected: str) -> None:
    """The error has Kaggle's reason; of a run that had already ended, the tail of the log is shown."""
    acts = [Act(end.state, "".join(f"line {n}\n" for n in range(70)), end.reason)]
    kaggle.kernels[KERNEL] = Kernel(sessions=[Session(*acts)])
    lines: list[str] = []
    with pytest.raises(KaggleError, match=f"ended as: {expected}") as caught:
        watch_kernel(KERNEL, every=0.1, say=lines.append)
    assert end.reason in caught.value.what
    assert lines[1:3] == ["The last 50 of 70 lines of its log:", "line 20"]
    assert lines[-2] == "line 69"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("experiments/001_det_baseline.yaml", f"there is no kernel {KERNEL}"),
        ("a/b/c", "'a/b/c' is not the name of a kernel"),
        ("experiments/001_det_baselin.yaml", "there is no such file"),
        ("detecton", "module is 'detecton'"),
    ],
)
def test_what_cannot_be_followed_is_one_error(kaggle: KaggleEmulator, name: str, expected: str) -> None:
    """An experiment without a kernel, or a name of none, is an error at the first request at the latest."""
    failed = CliRunner().invoke(app, ["watch", name]).exception
    assert isinstance(failed, RunError)
    assert expected in failed.what
    assert failed.remedy


def test_the_version_that_was_begun_with_is_followed(kaggle: KaggleEmulator) -> None:
    """A version that is pushed meanwhile is named, and neither its states nor its log are shown."""
    older = Session(Act("RUNNING", "old\n"), Act("RUNNING"), Act("COMPLETE"))
    kaggle.kernels[KERNEL] = Kernel(sessions=[older])
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if "running" in line:
            kaggle.kernels[KERNEL].sessions.append(Session(Act("RUNNING", "new\n"), Act("ERROR")))

    assert watch_kernel(KERNEL, every=0.5, say=say) is None
    told = ["running", "old", "Version 2 was pushed meanwhile; this follows version 1.", "complete"]
    assert sorted(without_times(lines[1:])) == sorted(told)
    assert lines[-1].endswith("complete")


@pytest.mark.slow
def test_an_older_version_can_be_followed(kaggle: KaggleEmulator) -> None:
    """Its state and log are shown, not those of the newest."""
    kaggle.kernels[KERNEL] = Kernel(sessions=[Session(Act("COMPLETE", "old\n")), Session(Act("ERROR", "new\n"))])
    lines: list[str] = []
    watch_kernel(f"{KERNEL}/1", every=0.1, say=lines.append)
    assert without_times(lines[1:]) == ["old", "complete"]


@pytest.mark.slow
def test_a_missing_version_is_an_error(kaggle: KaggleEmulator) -> None:
    """The error names the newest one."""
    kaggle.kernels[KERNEL] = Kernel()
    with pytest.raises(KaggleError, match=r"version 7 of .* does not exist") as caught:
        watch_kernel(f"{KERNEL}/7", every=60, say=print)
    assert f"{KERNEL}/1" in caught.value.remedy


def test_a_kernel_that_is_deleted_is_no_longer_followed(kaggle: KaggleEmulator) -> None:
    """Deletion ends the run, for which nobody needs to wait half an hour."""
    kaggle.kernels[KERNEL] = Kernel(sessions=[Session(Act("RUNNING"))])

    def say(line: str) -> None:
        if "running" in line:
            del kaggle.kernels[KERNEL]

    with pytest.raises(KaggleError, match=r"no run of version 1 .* the kernel was deleted"):
        watch_kernel(KERNEL, every=0.1, say=say)


@pytest.mark.slow
def test_a_log_that_only_the_stream_returned_is_complete(kaggle: KaggleEmulator) -> None:
    """Kaggle has not stored the log when the run ends; a log without a branch names none."""
    kaggle.keeps_log = False
    branch, message = follow(kaggle, Act("RUNNING", "a\n"), Act("RUNNING", "b\n"), Act("COMPLETE", "c\n"))
    assert branch is None
    assert without_times(message) == ["running", "a", "b", "c", "complete"]


@pytest.mark.slow
def test_following_ends_if_kaggle_does_not_answer(kaggle: KaggleEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """After `PATIENCE` seconds without a reply the run is no longer followed, and continues."""
    monkeypatch.setattr("lib.kaggle.watch.PATIENCE", 1.0)
    kaggle.add_fault("GetKernelSessionStatus", Fault(), times=99, after=1)
    with pytest.raises(KaggleError, match="does not answer") as caught:
        follow(kaggle, Act("RUNNING"))
    assert "continues" in caught.value.state


# ── the three ways of the README ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_the_rendered_files_serve_all_three_ways(kaggle: KaggleEmulator, tmp_path: Path) -> None:
    """The notebook can be uploaded, the cell can be pasted, and the client pushes the folder unchanged."""
    done = run_python("render.py", "localization", "--output", str(tmp_path), *GIVEN)
    assert done.returncode == 0, done.stderr
    notebook = nbformat.read(tmp_path / "train_module_3_localization.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert (notebook.metadata.kaggle.accelerator, notebook.metadata.kaggle.isInternetEnabled) == ("nvidiaTeslaT4", True)
    pasted = (tmp_path / "train_module_3_localization.py").read_text()
    compile(pasted, "one cell", "exec")
    nbformat.validate(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(pasted)]))
    message = run_python("-m", "kaggle", "kernels", "push", "-p", str(tmp_path)).stdout
    assert "successfully pushed" in message
    assert "does not resolve" not in message
    (pushed,) = kaggle.pushes
    assert nbformat.reads(pushed["text"], as_version=4) == notebook
    assert (pushed["machineShape"], pushed["datasetDataSources"]) == ("NvidiaTeslaT4", [SECRETS])
