"""What `render.py` writes, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import pytest
from conftest import ROOT, copy_project, parameters_of, run_git

import render
from lib.errors import RenderError
from lib.experiment.load import SHORTCUTS, load_experiment
from lib.experiment.modules import MODULES
from lib.experiment.schema import KEYS, Experiment
from lib.kaggle.notebook import parameters, read_notebook, read_sources, source
from lib.remotes.addresses import public_url

SOURCES = read_sources(ROOT)
NOTEBOOK = SOURCES["notebooks/train.py"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a clean clone of the working tree whose commit is on its remote."""
    folder = tmp_path_factory.mktemp("project")
    clone = folder / "clone"
    run_git("init", "--quiet", "--bare", "--initial-branch=main", folder / "origin.git", cwd=folder)
    run_git("clone", "--quiet", folder / "origin.git", clone, cwd=folder)
    copy_project(clone)
    run_git("push", "--quiet", "origin", "HEAD:main", cwd=clone)
    return clone


def run_render(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run render.py in a checkout, with no Kaggle account."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("KAGGLE")}
    env["KAGGLE_CONFIG_DIR"] = str(project)
    return subprocess.run(
        [sys.executable, "render.py", *words], cwd=project, env=env, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_rendered_notebook_is_ready_for_kaggle(project: Path, tmp_path: Path, module: str) -> None:
    """The names of the requirements, valid format, T4 x2 and internet, the URL and the exact commit."""
    done = run_render(project, module, "--output", str(tmp_path), "--kaggle-user", "somebody")
    assert done.returncode == 0, done.stderr
    asked = {"detection": "train_module_1_detection", "localization": "train_module_3_localization"}
    name = asked.get(module, MODULES[module].notebook)
    notebook = nbformat.read(tmp_path / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kaggle.accelerator == "nvidiaTeslaT4"
    assert notebook.metadata.kaggle.isInternetEnabled is True
    (folded,) = bootstrap_cells(notebook)
    assert folded.source == SOURCES["notebooks/bootstrap.py"].rstrip()
    assert folded.metadata["jupyter"] == {"source_hidden": True}
    assert folded.metadata["_kg_hide-input"] is True
    values = parameters_of(tmp_path / f"{name}.ipynb")
    assert values["commit"] == run_git("rev-parse", "HEAD", cwd=project)
    assert values["repository"] == str(project.parent / "origin.git")
    assert values["experiment"] == load_experiment(ROOT / MODULES[module].baseline).model_dump(mode="json")
    kernel = json.loads((tmp_path / "kernel-metadata.json").read_text())
    assert kernel["id"] == f"somebody/{kernel['title'].lower().replace(' ', '-')}"
    assert (kernel["machine_shape"], kernel["enable_internet"], kernel["is_private"]) == ("NvidiaTeslaT4", True, True)
    assert kernel["code_file"] == f"{name}.ipynb"
    assert kernel["dataset_sources"] == ["somebody/kaggle-training-secrets"]


def test_rendering_twice_gives_the_same_bytes(project: Path, tmp_path: Path) -> None:
    """Every file, also in another folder."""
    for folder in ("a", "b"):
        assert run_render(project, "detection", "--output", str(tmp_path / folder)).returncode == 0
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(files) == 3
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_default_folder_is_build_module(project: Path) -> None:
    """`build/detection/…`, which Git ignores: the tree stays clean."""
    assert run_render(project, "detection").returncode == 0
    assert (project / "build/detection/train_module_1_detection.ipynb").is_file()
    assert run_git("status", "--porcelain", cwd=project) == ""


def bootstrap_cells(notebook: Any) -> list[Any]:
    """Return the cells that are replaced by the text of bootstrap.py."""
    return [cell for cell in notebook.cells if "bootstrap" in cell.metadata.get("tags", [])]


def run_jupytext(folder: Path, *words: str) -> None:
    """Run jupytext's own command, which pairs and saves as it does inside Jupyter."""
    command = [sys.executable, "-m", "jupytext", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def opened(tmp_path: Path) -> Path:
    """Return a folder with the notebook's sources and the project's settings, opened once in Jupyter."""
    for name in (*SOURCES, "pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy2(ROOT / name, tmp_path / name)
    run_jupytext(tmp_path, "--sync", "notebooks/train.py")
    return tmp_path


def test_the_source_opens_as_a_notebook_and_comes_back_the_same(opened: Path) -> None:
    """Byte for byte, with every tag; what Jupyter saves with it is in a folder that Git ignores."""
    assert (opened / "notebooks/train.py").read_text(encoding="utf-8") == NOTEBOOK
    assert sorted(path.name for path in (opened / "notebooks").iterdir()) == ["bootstrap.py", "train.py"]
    shown = nbformat.read(opened / "build/notebooks/train.ipynb", as_version=4)
    nbformat.validate(shown)
    read = jupytext.reads(NOTEBOOK, fmt="py:percent")
    kinds = [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in read.cells]
    assert [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in shown.cells] == kinds
    for words in (("--to", "notebook", "--output", "a.ipynb", "notebooks/train.py"), ("--to", "py:percent", "a.ipynb")):
        run_jupytext(opened, *words)
    assert (opened / "a.py").read_text(encoding="utf-8") == NOTEBOOK


def test_what_the_notebook_imports_is_no_notebook(opened: Path) -> None:
    """Syncing bootstrap.py pairs it with nothing and leaves it as it is."""
    run_jupytext(opened, "--sync", "notebooks/bootstrap.py")
    assert (opened / "notebooks/bootstrap.py").read_text(encoding="utf-8") == SOURCES["notebooks/bootstrap.py"]
    assert [path.name for path in (opened / "build/notebooks").iterdir()] == ["train.ipynb"]


@pytest.mark.parametrize("folder", [".", "notebooks", "build/notebooks", "docs"])
def test_the_notebook_finds_what_it_imports(opened: Path, folder: str) -> None:
    """In Jupyter its own folder is the current one, under papermill usually the project's root."""
    (opened / folder).mkdir(exist_ok=True)
    (cell,) = bootstrap_cells(jupytext.reads(NOTEBOOK, fmt="py:percent"))
    script = f"{cell.source}\nimport bootstrap\nprint(bootstrap.__file__)"
    command = [sys.executable, "-I", "-S", "-c", script]
    done = subprocess.run(command, cwd=opened / folder, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == str(opened / "notebooks/bootstrap.py"), done.stderr


def test_the_folded_cell_defines_what_the_import_does() -> None:
    """Both define `Bootstrap`; all other names are the imports of the file, which are the standard library's."""
    defined = []
    for notebook in (jupytext.reads(NOTEBOOK, fmt="py:percent"), read_notebook(SOURCES)):
        (cell,) = bootstrap_cells(notebook)
        script = f"{cell.source}\nprint(*dir())"
        command = [sys.executable, "-I", "-S", "-c", script]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
        defined.append(set(done.stdout.split()) - {"folders"})
    assert defined[0] <= defined[1]
    imports = {"NoReturn", "TYPE_CHECKING", "UTC", "datetime", "json", "os", "random", "re", "shutil"}
    imports |= {"subprocess", "time", "unquote"}
    assert defined[1] - defined[0] == imports


def test_what_is_edited_as_a_notebook_is_in_the_source(opened: Path) -> None:
    """The changed line and nothing else; outputs stay in the notebook."""
    file = opened / "build/notebooks/train.ipynb"
    edited = nbformat.read(file, as_version=4)
    edited.cells[3].source += "\nprint('edited')"
    edited.cells[3].outputs = [nbformat.v4.new_output("stream", text="0.123\n")]
    nbformat.write(edited, file)
    run_jupytext(opened, "--sync", "build/notebooks/train.ipynb")
    before, after = (text.splitlines() for text in (NOTEBOOK, (opened / "notebooks/train.py").read_text()))
    assert [line for line in after if line not in before] == ["print('edited')"]
    assert len(after) == len(before) + 1
    assert nbformat.read(file, as_version=4).cells[3].outputs


def test_notebooks_that_jupyter_left_change_nothing_that_is_rendered(project: Path, tmp_path: Path) -> None:
    """The source is the `.py`; the tree stays clean too."""
    assert run_render(project, "detection", "--output", str(tmp_path / "a")).returncode == 0
    for name in ("notebooks/train.ipynb", "build/notebooks/train.ipynb"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("{}")
    done = run_render(project, "detection", "--output", str(tmp_path / "b"))
    assert done.returncode == 0, done.stderr
    name = "train_module_1_detection.ipynb"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_one_cell_holds_the_whole_run(project: Path, tmp_path: Path) -> None:
    """The `.py` compiles and has the code of every cell, in order; nothing in it needs a notebook's magics."""
    run_render(project, "detection", "--output", str(tmp_path))
    text = (tmp_path / "train_module_1_detection.py").read_text()
    compile(text, "one cell", "exec")
    notebook = nbformat.read(tmp_path / "train_module_1_detection.ipynb", as_version=4)
    places = [text.index(cell.source) for cell in notebook.cells if cell.cell_type == "code"]
    assert places == sorted(places)
    assert "\n%" not in text


def test_a_later_papermill_parameter_keeps_the_others(project: Path, tmp_path: Path) -> None:
    """`papermill … -p epochs 1` over a rendered notebook changes epochs alone."""
    import papermill

    run_render(project, "localization", "--output", str(tmp_path), "-p", "batch_size", "4")
    rendered = tmp_path / "train_module_3_localization.ipynb"
    papermill.execute_notebook(str(rendered), str(tmp_path / "out.ipynb"), {"epochs": 1}, prepare_only=True)
    before, after = parameters_of(rendered), parameters_of(tmp_path / "out.ipynb")
    assert after == {**before, "epochs": 1}
    assert after["batch_size"] == 4
    assert after["module"] == "localization"


def test_keys_of_the_experiment_are_parameters_too(project: Path, tmp_path: Path) -> None:
    """`-p augmentation.degrees 5` is baked into the experiment, as a number."""
    run_render(project, "detection", "--output", str(tmp_path), "-p", "augmentation.degrees", "5")
    baked = parameters_of(tmp_path / "train_module_1_detection.ipynb")["experiment"]
    assert isinstance(baked, dict)
    assert Experiment.model_validate(baked).augmentation.degrees == 5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-p", "epoch", "3"), "did you mean epochs?"),
        (("-p", "training.epocs", "3"), "did you mean training.epochs?"),
        (("-p", "module", "localization"), "the argument MODULE"),
        (("-p", "epochs", "three"), "training.epochs is 'three'"),
        (("-p", "epochs", "[3"), "-p epochs '[3': this is not a YAML value"),
        (("-p", "training.batch_size", "0"), "training.batch_size is 0"),
        (("--experiment", "experiments/001_loc_baseline.yaml"), "module is 'localization'"),
        (("--experiment", "experiments/001_det_baselin.yaml"), "did you mean experiments/001_det_baseline.yaml?"),
        (("--data", "somewhere"), "--data is for --run only"),
    ],
)
def test_bad_input_is_one_clear_error(project: Path, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    """It names what was given and the remedy, writes nothing and shows no traceback."""
    done = run_render(project, "detection", "--output", str(tmp_path / "out"), *words)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_names_that_make_the_same_branches_are_refused(project: Path, tmp_path: Path) -> None:
    """Also if the name is given by -p: nothing is written."""
    output = ("--output", str(tmp_path / "out"), "-p", "name", "exp001.yolo11s.baseline")
    done = run_render(project, "detection", *output)
    assert done.returncode == 1
    assert f"and exp001_yolo11s_baseline of {project}/experiments/001_det_baseline.yaml have the same" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("repository", ["https://me:ghp_1@example.com/me/name.git", "git@example.com:me/name.git"])
def test_a_parameter_that_is_a_text_stays_one(project: Path, tmp_path: Path, repository: str) -> None:
    """A commit of digits is no number, and a folder is no list; the address has no login, and is one without a key."""
    texts = {"commit": "5e12345", "working": "12", "secrets": "[1, 2]"}
    given = {**texts, "repository": repository}
    words = [word for item in given.items() for word in ("-p", *item)]
    done = run_render(project, "detection", "--output", str(tmp_path), *words)
    assert done.returncode == 0, done.stderr
    baked = parameters_of(tmp_path / "train_module_1_detection.ipynb")
    assert {name: baked[name] for name in texts} == texts
    assert baked["repository"] == "https://example.com/me/name.git"


def test_a_repository_with_sha256_names_is_refused(tmp_path: Path) -> None:
    """DVC cannot open it: one clear error, before a run."""
    run_git("init", "--quiet", "--object-format=sha256", "clone", cwd=tmp_path)
    run_git("commit", "--quiet", "--allow-empty", "--message=1", cwd=tmp_path / "clone")
    with pytest.raises(RenderError, match="SHA-256 object names"):
        source(tmp_path / "clone", allow_dirty=True)
    with pytest.raises(RenderError, match="no Git checkout with a commit"):
        source(tmp_path, allow_dirty=True)


def test_an_unknown_module_is_refused(project: Path) -> None:
    """With the one that was meant."""
    done = run_render(project, "detecton")
    assert done.returncode == 1
    assert "did you mean detection?" in done.stderr


def test_a_dirty_tree_is_refused_with_the_remedy(project: Path, tmp_path: Path) -> None:
    """Kaggle clones the commit, not the working tree; --allow-dirty overrides, but not for a wrong experiment."""
    stray = project / "stray.txt"
    stray.write_text("x")
    try:
        done = run_render(project, "detection", "--output", str(tmp_path))
        assert done.returncode == 1
        assert "stray.txt" in done.stderr
        assert "--allow-dirty" in done.stderr
        wrong = run_render(project, "detection", "--output", str(tmp_path), "-p", "training.epochs", "0")
        assert "training.epochs is 0" in wrong.stderr
        assert run_render(project, "detection", "--output", str(tmp_path), "--allow-dirty").returncode == 0
    finally:
        stray.unlink()


def test_a_commit_that_is_not_pushed_is_refused(project: Path, tmp_path: Path) -> None:
    """Kaggle could not clone it; an older commit that is on the remote is fine."""
    older = run_git("rev-parse", "HEAD", cwd=project)
    run_git("commit", "--quiet", "--allow-empty", "--message=local", cwd=project)
    try:
        done = run_render(project, "detection", "--output", str(tmp_path))
        assert done.returncode == 1
        assert "is not on the remote" in done.stderr
        assert "git push" in done.stderr
        run_git("push", "--quiet", "origin", "HEAD:main", cwd=project)
        run_git("checkout", "--quiet", older, cwd=project)
        assert run_render(project, "detection", "--output", str(tmp_path)).returncode == 0
    finally:
        run_git("checkout", "--quiet", "main", cwd=project)


def test_a_checkout_without_remote_is_refused(project: Path, tmp_path: Path) -> None:
    """There would be nothing to clone."""
    run_git("remote", "rename", "origin", "elsewhere", cwd=project)
    try:
        done = run_render(project, "detection", "--output", str(tmp_path))
        assert done.returncode == 1
        assert "git remote add origin" in done.stderr
    finally:
        run_git("remote", "rename", "elsewhere", "origin", cwd=project)


@pytest.mark.parametrize(
    ("given", "public"),
    [
        ("ssh://git@gitlab.example.com:2222/owner/name.git", "https://gitlab.example.com/owner/name.git"),
        ("ssh://git@ssh.github.com:443/owner/name.git", "https://github.com/owner/name.git"),
        ("org-12@github.com:owner/name.git", "https://github.com/owner/name.git"),
        ("https://user:p@ss@github.com/owner/name.git", "https://github.com/owner/name.git"),
        ("https://user:pa/ss@github.com/owner/name.git", "https://github.com/owner/name.git"),
        ("https://git.example.com:8443/@owner/name.git", "https://git.example.com:8443/@owner/name.git"),
        ("https://[::1]:8443/@owner/name.git", "https://[::1]:8443/@owner/name.git"),
        ("HTTPS://user:token@github.com/owner/name.git", "HTTPS://github.com/owner/name.git"),
        ("https://ghp_token@github.com/a/b.git", "https://github.com/a/b.git"),
        ("https://user:ghp_token@github.com/a/b.git", "https://github.com/a/b.git"),
        ("git@github.com:a/b.git", "https://github.com/a/b.git"),
        ("ssh://git@github.com/a/b.git", "https://github.com/a/b.git"),
        ("https://github.com/a/b", "https://github.com/a/b"),
        ("github.com:a/b.git", "https://github.com/a/b.git"),
        ("git+ssh://git@github.com/a/b.git", "https://github.com/a/b.git"),
        ("/folder/origin.git", "/folder/origin.git"),
        ("file:///folder/origin.git", "file:///folder/origin.git"),
        ("C:/folder/origin.git", "C:/folder/origin.git"),
    ],
)
def test_no_token_is_baked_in_with_the_address(given: str, public: str) -> None:
    """What people have in their remote's URL does not go into a notebook that may become public."""
    assert public_url(given) == public


def test_an_accelerator_changes_what_kaggle_is_asked_for(project: Path, tmp_path: Path) -> None:
    """`none` asks for no GPU, in the notebook and in the kernel's metadata."""
    run_render(project, "detection", "--output", str(tmp_path), "--accelerator", "none")
    notebook = nbformat.read(tmp_path / "train_module_1_detection.ipynb", as_version=4)
    assert notebook.metadata.kaggle.isGpuEnabled is False
    assert json.loads((tmp_path / "kernel-metadata.json").read_text())["enable_gpu"] is False


def test_rendering_imports_nothing_heavy(project: Path, tmp_path: Path) -> None:
    """No torch, ultralytics, wandb or repository of DVC's, no store of papermill's and no server of jupytext's."""
    script = (
        "import sys, runpy; sys.argv = ['render.py', 'detection', '--output', sys.argv[1]]\n"
        "try: runpy.run_path('render.py', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'ultralytics', 'dvc.repo', 'wandb', 'cv2', 'boto3', 'azure', 'gcsfs', 'jupyter_server'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=project, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_parameter_has_a_comment() -> None:
    """It is shown by papermill as the parameter's help."""
    found = parameters(read_notebook(SOURCES))
    assert len(found) >= 10
    assert all(len(comment) > 10 for comment in found.values())


def test_shortcuts_are_parameters_and_keys() -> None:
    """Each shortcut of the notebook sets a key that an experiment has."""
    assert set(SHORTCUTS) <= set(parameters(read_notebook(SOURCES)))
    assert set(SHORTCUTS.values()) <= set(KEYS)


def test_every_key_of_an_experiment_can_be_given(project: Path, tmp_path: Path) -> None:
    """Of a section or not; one that is given as null is null."""
    given = ("-p", "session.max_hours", "null", "-p", "seed", "7", "-p", "export", "[onnx]")
    done = run_render(project, "detection", "--output", str(tmp_path), *given)
    assert done.returncode == 0, done.stderr
    baked = parameters_of(tmp_path / "train_module_1_detection.ipynb")["experiment"]
    wanted = {"session.max_hours": None, "seed": 7, "export": ["onnx"]}
    assert baked == load_experiment(ROOT / MODULES["detection"].baseline, wanted).model_dump(mode="json")


def test_unknown_parameters_are_an_error_even_without_a_near_miss() -> None:
    """All that are known are listed."""
    with pytest.raises(RenderError, match="known are: repository"):
        render.unknown_or_reserved({"zzz": 1}, read_notebook(SOURCES))


def test_the_round_trip_through_a_notebook_loses_nothing() -> None:
    """Edited in Jupyter and saved back, notebooks/train.py is the same text."""
    assert jupytext.writes(jupytext.reads(NOTEBOOK, fmt="py:percent"), fmt="py:percent") == NOTEBOOK
