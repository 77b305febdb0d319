"""What `render.py --push` and `python -m lib watch` do with the real kaggle client, before a Kaggle on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from kaggle_emulator import KEY, TOKEN, USER, Act, Dataset, KaggleEmulator, Kernel

from lib.errors import KaggleError
from lib.experiment.modules import MODULES
from lib.kaggle.kernel import client_user, gpu_quota, push_kernel, require_private, watch_kernel
from lib.kaggle.notebook import kernel_metadata

KERNEL = f"{USER}/train-module-1-detection"
SECRETS = f"{USER}/kaggle-training-secrets"
BRANCH = "kaggle-train-detection-exp001-yolo11s-baseline-20260102-030405"
COMMIT = "0123456789" * 4
GIVEN = ["-p", "repository", "https://example.com/me/training.git", "-p", "commit", COMMIT]


@pytest.fixture
def kaggle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KaggleEmulator]:
    """Give a Kaggle with a user, whose key is in the environment, and a private dataset with secrets.json."""
    with KaggleEmulator() as service:
        service.datasets[SECRETS] = Dataset()
        use_account(service, tmp_path, monkeypatch)
        yield service


def use_account(service: KaggleEmulator, home: Path, patch: pytest.MonkeyPatch, **account: str) -> None:
    """Let clients of this process use that account and no other."""
    given = service.environment(home, **account)
    for name in set(os.environ) - set(given):
        patch.delenv(name)
    for name in set(given) - {"PYTEST_CURRENT_TEST"}:
        patch.setenv(name, given[name])


def run_python(*words: str) -> subprocess.CompletedProcess[str]:
    """Run one of the project's commands, as people do."""
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=300)


def write_folder(folder: Path, **changed: object) -> Path:
    """Write the least that can be pushed."""
    metadata = kernel_metadata(MODULES["detection"], "t4x2", USER, "") | changed
    (folder / "kernel-metadata.json").write_text(json.dumps(metadata))
    (folder / str(metadata["code_file"])).write_text(nbformat.writes(nbformat.v4.new_notebook()))
    return folder


def follow(kaggle: KaggleEmulator, *acts: Act) -> tuple[str | None, list[str]]:
    """Follow a run of these acts; give the branch and what was said."""
    kaggle.kernels[KERNEL] = Kernel(run=acts)
    said: list[str] = []
    return watch_kernel(KERNEL, every=0.5, say=said.append), said


def without_times(said: list[str]) -> list[str]:
    """Give what was said with the times of states left out."""
    return [line[len("[00:00:00] ") :] if line.startswith("[0") else line for line in said]


# ── pushing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_command_renders_and_pushes(kaggle: KaggleEmulator, tmp_path: Path) -> None:
    """What Kaggle gets is the rendered notebook: private, two T4, internet, the secrets; its address is printed."""
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
    assert "python -m lib watch detection" in done.stdout
    assert KEY not in done.stdout + done.stderr


def test_pushing_and_running_here_exclude_each_other(tmp_path: Path) -> None:
    """One error, and nothing is made."""
    done = run_python("render.py", "detection", "--push", "--run", "--output", str(tmp_path / "out"))
    assert (done.returncode, "leave one of them out" in done.stderr) == (1, True)
    assert not (tmp_path / "out").exists()


def test_a_repository_that_kaggle_cannot_reach_is_not_pushed(kaggle: KaggleEmulator, tmp_path: Path) -> None:
    """A path of this machine, say."""
    where = ["-p", "repository", str(tmp_path), "-p", "commit", COMMIT, "--output", str(tmp_path / "out")]
    done = run_python("render.py", "detection", "--push", *where)
    assert (done.returncode, f"Kaggle cannot clone {tmp_path}" in done.stderr) == (1, True)
    assert kaggle.requests == []


def test_without_a_key_there_is_one_error(
    kaggle: KaggleEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the address where a key is made; a user's name alone is none."""
    use_account(kaggle, tmp_path, monkeypatch, KAGGLE_USERNAME=USER)
    with pytest.raises(KaggleError, match="has no key") as caught:
        client_user()
    assert "KAGGLE_API_TOKEN" in caught.value.remedy


def test_a_key_that_kaggle_refuses_is_one_error(
    kaggle: KaggleEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is pushed; the key is not in it."""
    use_account(kaggle, tmp_path, monkeypatch, KAGGLE_USERNAME=USER, KAGGLE_KEY="revoked0" * 4)
    with pytest.raises(KaggleError, match="rejects the one it has") as caught:
        require_private(KERNEL, SECRETS)
    assert "revoked0" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("account", ["a token", "kaggle.json"])
def test_the_user_is_the_one_that_the_client_has_a_key_of(
    kaggle: KaggleEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, account: str
) -> None:
    """However it has got the key; a token names nobody, so Kaggle is asked."""
    if account == "a token":
        use_account(kaggle, tmp_path, monkeypatch, KAGGLE_API_TOKEN=TOKEN)
    else:
        (tmp_path / "kaggle.json").write_text(json.dumps({"username": USER, "key": KEY}))
        use_account(kaggle, tmp_path, monkeypatch, KAGGLE_CONFIG_DIR=str(tmp_path))
    assert client_user() == USER


def test_a_token_that_an_error_would_show_is_hidden(
    kaggle: KaggleEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's HTTP library repeats a header that cannot be: a token with a line's end in it, say."""
    use_account(kaggle, tmp_path, monkeypatch, KAGGLE_API_TOKEN=f"{TOKEN}\r\n")
    with pytest.raises(Exception, match=r"\*\*\*") as caught:
        require_private(KERNEL, SECRETS)
    assert TOKEN not in str(caught.value)


def test_a_public_kernel_is_not_pushed_over(kaggle: KaggleEmulator) -> None:
    """Everybody would see its log; one that is not there yet, or private, is taken."""
    kaggle.kernels[KERNEL] = Kernel(is_private=False)
    with pytest.raises(KaggleError, match=f"the kernel {KERNEL} exists and is public"):
        require_private(KERNEL, SECRETS)


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        pytest.param(Dataset(is_private=False), f"the dataset {SECRETS} is public", id="public"),
        pytest.param(None, f"there is no dataset {SECRETS}", id="missing", marks=pytest.mark.slow),
        pytest.param(Dataset(files=["secrets.txt"]), "has no file secrets.json", id="empty", marks=pytest.mark.slow),
    ],
)
def test_a_secrets_dataset_that_cannot_serve_is_refused(
    kaggle: KaggleEmulator, dataset: Dataset | None, said: str
) -> None:
    """Before the push, by name; the existing private kernel is fine."""
    kaggle.kernels[KERNEL] = Kernel()
    kaggle.datasets = {} if dataset is None else {SECRETS: dataset}
    with pytest.raises(KaggleError, match=said) as caught:
        require_private(KERNEL, SECRETS)
    assert caught.value.state == "nothing was pushed."


def test_a_dataset_that_is_no_name_is_refused(kaggle: KaggleEmulator) -> None:
    """Before Kaggle is asked anything."""
    with pytest.raises(KaggleError, match="--secrets-dataset 'secrets' is not the name"):
        require_private(KERNEL, "secrets")
    assert kaggle.requests == []


@pytest.mark.slow
def test_a_kaggle_in_trouble_is_not_taken_for_a_missing_kernel(kaggle: KaggleEmulator) -> None:
    """Whether it is public is not known then, so nothing is pushed."""
    kaggle.add_fault("GetKernel", 503)
    with pytest.raises(KaggleError, match=f"does not report whether {KERNEL} is private"):
        require_private(KERNEL, SECRETS)


def test_a_refused_push_is_an_error_although_the_client_exits_with_0(kaggle: KaggleEmulator, tmp_path: Path) -> None:
    """In Kaggle's own words."""
    kaggle.push_error = "Maximum batch GPU session count of 2 reached."
    with pytest.raises(KaggleError, match=r"refused the push .* Maximum batch GPU session count of 2 reached"):
        push_kernel(write_folder(tmp_path))


@pytest.mark.slow
def test_a_push_without_its_secrets_is_an_error(kaggle: KaggleEmulator, tmp_path: Path) -> None:
    """The kernel runs then, and will fail: it says where to stop it."""
    kaggle.unusable = [SECRETS]
    with pytest.raises(KaggleError, match="did not attach the secrets dataset") as caught:
        push_kernel(write_folder(tmp_path))
    assert f"https://www.kaggle.com/code/{KERNEL}" in caught.value.state


@pytest.mark.slow
def test_a_push_whose_answer_is_lost_is_not_called_refused(kaggle: KaggleEmulator, tmp_path: Path) -> None:
    """It may run: a second push would be a second run."""
    kaggle.add_fault("SaveKernel")
    with pytest.raises(KaggleError, match="did not confirm the push") as caught:
        push_kernel(write_folder(tmp_path))
    assert "not known whether" in caught.value.state


@pytest.mark.slow
def test_what_the_client_warns_of_is_shown(kaggle: KaggleEmulator, tmp_path: Path) -> None:
    """A title that is no slug, a retired GPU, and the name that Kaggle has made of it."""
    kaggle.slug = "another-name"
    pushed = str(push_kernel(write_folder(tmp_path, title="Another Name", machine_shape="NvidiaTeslaP100")))
    assert "title does not resolve to the specified id" in pushed
    assert "is retired" in pushed
    assert f"under another name than {KERNEL}" in pushed


@pytest.mark.slow
def test_a_quota_that_kaggle_does_not_tell_is_left_out(kaggle: KaggleEmulator) -> None:
    """It is no reason not to push."""
    kaggle.quota = None
    assert gpu_quota() == ""


@pytest.mark.parametrize("module", sorted(MODULES))
def test_the_id_is_what_the_client_makes_of_the_title(module: str) -> None:
    """Kaggle names a new kernel after its title: with another id it would not be found again."""
    from slugify import slugify

    metadata = kernel_metadata(MODULES[module], "t4x2", USER, "")
    assert metadata["id"] == f"{USER}/{slugify(metadata['title'])}"


# ── following ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_is_followed_to_its_end(kaggle: KaggleEmulator) -> None:
    """States, and each line of the log once, though the stream is cut and a question gets no answer."""
    kaggle.kernels[KERNEL] = Kernel(
        run=[
            Act("QUEUED"),
            Act("RUNNING", "step 1\n  5%\r 50%\r100%\nstep 2\n"),
            Act("COMPLETE", f"Branch:    {BRANCH}\n"),
        ]
    )
    kaggle.stream_cuts = 1
    kaggle.add_fault("GetKernelSessionStatus", 502)
    done = run_python("-m", "lib", "watch", "detection", "--every", "1.5")
    assert done.returncode == 0, done.stderr
    first, *said, published, fetch = done.stdout.splitlines()
    assert first.endswith(f"https://www.kaggle.com/code/{KERNEL}")
    trouble, *said = without_times(said)
    assert trouble.startswith("no answer: the service has trouble")
    assert said == ["queued", "running", "step 1", "100%", "step 2", f"Branch:    {BRANCH}", "complete"]
    assert published == f"The run is complete, and published as {BRANCH}."
    assert fetch == f"Download it with: python -m lib fetch {BRANCH}"
    assert kaggle.requests.count("LogStream") >= 2


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (Act("ERROR", reason="Notebook timeout"), "error"),
        pytest.param(Act("CANCEL_ACKNOWLEDGED"), "cancelled", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_does_not_end_well_is_an_error(kaggle: KaggleEmulator, end: Act, said: str) -> None:
    """With Kaggle's reason, and the tail of a log that was over before anybody looked."""
    kaggle.kernels[KERNEL] = Kernel(run=[Act(end.state, "".join(f"line {n}\n" for n in range(70)), end.reason)])
    lines: list[str] = []
    with pytest.raises(KaggleError, match=f"ended as: {said}") as caught:
        watch_kernel(KERNEL, every=0.1, say=lines.append)
    assert end.reason in caught.value.what
    assert lines[:2] == ["The last 50 of 70 lines of its log:", "line 20"]
    assert lines[-2] == "line 69"


def test_a_kernel_that_is_not_there_cannot_be_followed(kaggle: KaggleEmulator) -> None:
    """It is said at once, not asked for again and again."""
    with pytest.raises(KaggleError, match=f"there is no kernel {KERNEL}") as caught:
        watch_kernel(KERNEL, every=60, say=print)
    assert "push it first" in caught.value.remedy


@pytest.mark.slow
def test_a_log_that_only_the_stream_had_is_complete(kaggle: KaggleEmulator) -> None:
    """Kaggle has not kept it yet when the run is over; without a branch in it there is none to name."""
    kaggle.keeps_log = False
    branch, said = follow(kaggle, Act("RUNNING", "a\n"), Act("RUNNING", "b\n"), Act("COMPLETE", "c\n"))
    assert branch is None
    assert without_times(said) == ["running", "a", "b", "c", "complete"]


@pytest.mark.slow
def test_a_kaggle_that_stays_away_is_given_up(kaggle: KaggleEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while; the run goes on without being looked at."""
    monkeypatch.setattr("lib.kaggle.kernel.PATIENCE", 1.0)
    kaggle.add_fault("GetKernelSessionStatus", times=99)
    with pytest.raises(KaggleError, match="does not answer") as caught:
        follow(kaggle, Act("RUNNING"))
    assert "continues" in caught.value.state


# ── the three ways of the README ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_what_is_rendered_serves_all_three_ways(kaggle: KaggleEmulator, tmp_path: Path) -> None:
    """The notebook to upload is valid, the cell to paste is one, and the client pushes the folder as it is."""
    done = run_python("render.py", "localization", "--output", str(tmp_path), *GIVEN)
    assert done.returncode == 0, done.stderr
    notebook = nbformat.read(tmp_path / "train_module_3_localization.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert (notebook.metadata.kaggle.accelerator, notebook.metadata.kaggle.isInternetEnabled) == ("nvidiaTeslaT4", True)
    pasted = (tmp_path / "train_module_3_localization.py").read_text()
    compile(pasted, "one cell", "exec")
    nbformat.validate(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(pasted)]))
    said = run_python("-m", "kaggle", "kernels", "push", "-p", str(tmp_path)).stdout
    assert "successfully pushed" in said
    assert "does not resolve" not in said
    (pushed,) = kaggle.pushes
    assert nbformat.reads(pushed["text"], as_version=4) == notebook
    assert (pushed["machineShape"], pushed["datasetDataSources"]) == ("NvidiaTeslaT4", [SECRETS])
