"""A published run is rendered again from its branch alone, or one error gives the reason."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat
import pytest
from click.testing import CliRunner
from conftest import ROOT, RUN, Stores, run_git, write_run
from git_host_emulator import GitHost
from kaggle_emulator import USER, Dataset, KaggleEmulator

from lib.cli.app import app
from lib.errors import BranchError, KaggleError, RenderError
from lib.experiment.load import load_experiment
from lib.kaggle.notebook import read_sources
from lib.remotes.credentials import Credentials
from lib.results.rerun import rerun
from lib.sync import Publication, sync_outputs

BRANCH = "kaggle-train-detection-exp001-baseline-20250102-030405"
EXPERIMENT = load_experiment(ROOT / "experiments/001_det_baseline.yaml", {"training.epochs": 7}).model_dump(mode="json")


def record(commit: str) -> dict[str, Any]:
    """Return the content of the run.json of a run on two T4, as far as these tests need it."""
    return {
        "branch": BRANCH,
        "commit": commit,
        "experiment": EXPERIMENT,
        "machine": {"gpus": [{"name": "Tesla T4", "memory": 16}] * 2},
        "versions": {"torch": "2.6.0"},
    }


@dataclass(frozen=True)
class Published:
    """A clone whose code is newer than its published run, and the commit that the run was trained from."""

    stores: Stores
    clone: Path
    commit: str

    def publish(self, run: dict[str, Any], branch: str = BRANCH) -> None:
        """Publish a run with this run.json from the commit that was trained."""
        other = self.stores.clone_again(f"machine-{branch}")
        run_git("checkout", "--quiet", "--detach", self.commit, cwd=other)
        write_run(other)
        (other / RUN / "run.json").write_text(json.dumps(run), encoding="utf-8")
        sync_outputs(Publication(other, branch, "a run", RUN, (), datetime(2025, 1, 2, tzinfo=UTC)), say=str)

    def rerun(self, branch: str = BRANCH) -> Any:
        """Render the run again; return the notebook's parameters and the kernel's metadata."""
        rendered = rerun(self.clone, branch, Credentials(), self.stores.folder / "out", "somebody", "").rendered
        values: dict[str, Any] = {}
        for cell in nbformat.read(rendered.notebook, as_version=4).cells:
            if "parameters" in cell.metadata.get("tags", []):
                exec(cell.source, values)  # our own notebook
        assert rendered.kernel
        return values, json.loads(rendered.kernel.read_text())


@pytest.fixture
def published(stores: Stores) -> Published:
    """Commit the notebook, publish a run of it, and change it afterwards."""
    commits = []
    for version in ("as it was trained", "newer"):
        sources = {name: f"{text}\n# {name}, {version}\n" for name, text in read_sources(ROOT).items()}
        commits.append(commit_sources(stores.clone, sources))
    made = Published(stores, stores.clone, commits[0])
    made.publish(record(commits[0]))
    return made


def commit_sources(clone: Path, sources: Mapping[str, str]) -> str:
    """Commit and push the files of a notebook; return the commit."""
    for name, text in sources.items():
        (clone / name).parent.mkdir(exist_ok=True)
        (clone / name).write_text(text, encoding="utf-8")
    run_git("add", "notebooks", cwd=clone)
    run_git("commit", "--quiet", "--message=notebook", cwd=clone)
    run_git("push", "--quiet", "origin", "HEAD:main", cwd=clone)
    return run_git("rev-parse", "HEAD", cwd=clone)


def test_the_notebook_commit_and_experiment_are_those_of_the_run(published: Published) -> None:
    """Not the newer ones of the checkout, in which no ref, file or branch changes."""
    looks = (("for-each-ref",), ("status", "--porcelain"))
    before = [run_git(*words, cwd=published.clone) for words in looks]
    values, kernel = published.rerun(f"origin/{BRANCH}")
    assert values["experiment"] == EXPERIMENT
    assert values["commit"] == published.commit
    assert values["repository"] == str(published.stores.origin)
    assert (values["module"], values["accelerator"]) == ("detection", "t4x2")
    assert kernel["machine_shape"] == "NvidiaTeslaT4"
    text = (published.stores.folder / "out/train_module_1_detection.py").read_text()
    assert "# notebooks/train.py, as it was trained" in text
    assert "# notebooks/bootstrap.py, as it was trained" in text
    assert ", newer" not in text
    assert [run_git(*words, cwd=published.clone) for words in looks] == before


@pytest.mark.parametrize(("gpu", "wanted"), [([], "none"), ([{"name": "Tesla P100-PCIE-16GB", "memory": 16}], "p100")])
def test_the_accelerator_is_that_of_the_run(
    published: Published, capsys: pytest.CaptureFixture[str], gpu: list[dict[str, Any]], wanted: str
) -> None:
    """It is `none` for a run without a GPU; for a P100, which Kaggle has retired, a warning says so."""
    branch = BRANCH.replace("2025", "2026")
    published.publish({**record(published.commit), "branch": branch, "machine": {"gpus": gpu}}, branch)
    assert published.rerun(branch)[0]["accelerator"] == wanted
    assert ("a push would run on T4 x2" in capsys.readouterr().out) == (wanted == "p100")


def test_a_rerun_is_pushed_by_the_same_command(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It becomes a version of the experiment's kernel.

    The run of a P100 is refused until another GPU is given, and one that a person has stopped until `--resume` is.
    """
    branch = BRANCH.replace("2025", "2026")
    gpu = {"gpus": [{"name": "Tesla P100-PCIE-16GB", "memory": 16}]}
    published.publish({**record(published.commit), "branch": branch, "machine": gpu}, branch)
    for name in ("render.py", "uv.lock"):
        (published.clone / name).touch()
    (tmp_path / "hosted/owner").mkdir(parents=True)
    (tmp_path / "hosted/owner/name.git").symlink_to(published.stores.origin)
    monkeypatch.chdir(published.clone)
    with GitHost(tmp_path / "hosted") as host, KaggleEmulator() as kaggle:
        host.public.add("owner/name")
        run_git("remote", "set-url", "origin", f"{host.url}/owner/name.git", cwd=published.clone)
        kaggle.datasets[f"{USER}/kaggle-training-secrets"] = Dataset()
        environment = kaggle.environment(tmp_path) | {"no_proxy": "127.0.0.1"}
        command = ["rerun", branch, "--push", "--output", str(tmp_path / "out")]
        refused = CliRunner().invoke(app, command, env=environment)
        assert isinstance(refused.exception, RenderError)
        assert "--accelerator t4x2" in refused.exception.remedy
        assert not kaggle.requests
        command += ["--accelerator", "t4x2"]
        run_git("push", "--quiet", "origin", "HEAD:refs/stops/detection-exp001-yolo11s-baseline",
                cwd=published.stores.clone_again())  # fmt: skip
        stopped = CliRunner().invoke(app, command, env=environment)
        assert isinstance(stopped.exception, KaggleError)
        assert "exp001-yolo11s-baseline was asked to stop" in stopped.exception.what
        assert not kaggle.pushes
        done = CliRunner().invoke(app, [*command, "--resume"], env=environment)
        assert done.exit_code == 0, done.output
        assert "Duration: not known: no run like this one is published yet" in done.output
        (pushed,) = kaggle.pushes
    assert (pushed["slug"], pushed["machineShape"]) == (
        f"{USER}/train-detection-exp001-yolo11s-baseline",
        "NvidiaTeslaT4",
    )
    assert published.commit in pushed["text"]
    assert f"watch {pushed['slug']}/1" in done.output


def test_an_unknown_branch_is_reported_with_suggestions(published: Published) -> None:
    """A similar name suggests the branch, any other name the newest ones; nothing is written."""
    with pytest.raises(BranchError, match="no branch") as near:
        published.rerun(BRANCH.replace("30405", "30406"))
    assert near.value.remedy == f"did you mean: {BRANCH}."
    with pytest.raises(BranchError, match="no branch 'main'") as far:
        published.rerun("main")
    assert far.value.remedy == f"the newest are: {BRANCH}."
    assert not (published.stores.folder / "out").exists()


def test_an_invalid_record_is_reported_with_its_path_and_key(published: Published) -> None:
    """The error names the file in the branch and the key with the invalid value."""
    branch = BRANCH.replace("2025", "2026")
    published.publish({**record("main"), "branch": branch}, branch)
    with pytest.raises(BranchError, match=rf"{RUN}/run\.json: commit: "):
        published.rerun(branch)


def test_the_record_of_another_run_is_not_used(published: Published) -> None:
    """In a repository that has merged a run, the branches of later runs hold its run.json, too."""
    branch = BRANCH.replace("2025", "2026")
    published.publish(record(published.commit), branch)
    with pytest.raises(BranchError, match=r"no run\.json of its own"):
        published.rerun(branch)


def test_a_notebook_of_the_time_before_bootstrap_is_rendered_as_it_was(published: Published) -> None:
    """Its cells hold everything; no cell has the tag `bootstrap`, and its commit has no such file."""
    older = read_sources(ROOT)["notebooks/train.py"].replace('tags=["bootstrap"]', "").replace("boot.", "older.")
    run_git("rm", "--quiet", "-r", "notebooks", cwd=published.clone)
    commit = commit_sources(published.clone, {"notebooks/train.py": older})
    branch = BRANCH.replace("2025", "2026")
    replace(published, commit=commit).publish({**record(commit), "branch": branch}, branch)
    assert published.rerun(branch)[0]["commit"] == commit
    text = (published.stores.folder / "out/train_module_1_detection.py").read_text()
    assert "older.verify_gpu(accelerator)" in text
    assert "class Bootstrap" not in text


def test_a_commit_without_the_notebook_is_reported(published: Published) -> None:
    """The run was trained from a commit that has no notebooks/train.py."""
    branch, first = BRANCH.replace("2025", "2026"), run_git("rev-list", "--max-parents=0", "main", cwd=published.clone)
    published.publish({**record(first), "branch": branch}, branch)
    with pytest.raises(RenderError, match=r"notebooks/train\.py of commit"):
        published.rerun(branch)
