"""What the README promises is true: its tree, its commands, its table of errors."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, Stores, run_git

from lib import errors
from lib.cli.app import app

README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """Give the text below a heading, up to the next one of its level or above."""
    level = title.count("#")
    _, _, rest = README.partition(f"\n{title}\n")
    assert rest, f"the README has no section {title}"
    return re.split(rf"\n#{{1,{level}}} ", rest)[0]


def blocks(language: str = "bash") -> list[str]:
    """Give the README's code blocks of a language, without their indentation in lists."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```$", README, re.DOTALL | re.MULTILINE)
    return ["\n".join(line.removeprefix(indent) for line in text.splitlines()) for indent, text in found]


def test_the_tree_is_the_real_tree() -> None:
    """Each line names a path that is there, and every module and package of lib has its line."""
    (tree,) = re.findall(r"```\n(render\.py .*?)```", section("## What is where"), re.DOTALL)
    named = [line.split()[0] for line in tree.splitlines()]
    assert [name for name in named if not (ROOT / name).exists()] == []
    modules = {f"lib/{path.name}" for path in (ROOT / "lib").glob("*.py")} - {"lib/__init__.py"}
    packages = {f"lib/{path.parent.name}/" for path in (ROOT / "lib").glob("*/__init__.py")}
    assert modules | packages == {name for name in named if name.startswith("lib/")}


def test_the_table_of_errors_names_every_error() -> None:
    """Neither an error without a row nor a row without an error."""
    rows = re.findall(r"^\| `(\w+)`", section("## When something fails"), re.MULTILINE)
    kinds = {
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.RunError) and kind is not errors.RunError
    }
    assert sorted(rows) == sorted(kinds)


def test_an_error_that_names_a_section_names_one_that_is_there() -> None:
    """`(README, Prerequisites)`: who looks for it finds it."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "lib").rglob("*.py")]
    named = {title for text in texts for title in re.findall(r"README, ([A-Z]\w+)", text)}
    assert named
    assert [title for title in named if f"\n## {title}\n" not in README] == []


@pytest.mark.parametrize(
    "said",
    ["CUDA out of memory", "data.yaml not found", "Authentication failed", "failed to push data to the remote"],
)
def test_the_errors_of_the_requirements_stand_in_the_table(said: str) -> None:
    """Who searches for the words on the screen finds the row."""
    assert said in section("## When something fails")


def test_every_command_of_lib_is_documented() -> None:
    """`python -m lib NAME` for each, and none that is not there."""
    documented = set(re.findall(r"python -m lib (\w+)", README))
    assert documented == set(app.commands)


@pytest.mark.parametrize("command", [["-m", "lib"], ["render.py"], *(["-m", "lib", name] for name in app.commands)])
def test_every_command_explains_itself(command: list[str]) -> None:
    """`--help` works, at once: nothing heavy is imported for it."""
    script = (
        "import runpy, sys\nname, *sys.argv[1:] = sys.argv[1:]\n"
        "try: runpy.run_module(name, run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end: assert not end.code\n"
        "print(sorted({'torch', 'ultralytics', 'dvc', 'wandb', 'cv2', 'numpy', 'ray'} & set(sys.modules)))"
    )
    module = "render" if command == ["render.py"] else "lib"
    done = subprocess.run(
        [sys.executable, "-c", script, module, *command[2:], "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_recover_by_hand_says_that_nothing_is_left(stores: Stores) -> None:
    """`python -m lib recover` in any clone."""
    done = subprocess.run(
        [sys.executable, "-m", "lib", "recover", "--older-than", "0"],
        cwd=stores.clone, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "No unfinished publication is left."


def test_the_commands_for_the_dataset_work_as_written(tmp_path: Path) -> None:
    """DVC's own commands, with a folder in place of Google Drive; what they push can be pulled, and the copy is one."""
    block, copy = [text for text in blocks() if "dvc remote add" in text]
    origin, clone = tmp_path / "origin.git", tmp_path / "clone"
    run_git("init", "--quiet", "--bare", "--initial-branch=main", origin, cwd=tmp_path)
    run_git("clone", "--quiet", origin, clone, cwd=tmp_path)
    (clone / "data/detection").mkdir(parents=True)
    (clone / "data/detection/data.yaml").write_text("path: .\n")
    (tmp_path / "drive").mkdir()
    script = f"{block}\n{copy}".replace("gdrive://<folder id>", str(tmp_path / "drive")).replace("uv run dvc", "dvc")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "PATH": path}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=clone, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    second = tmp_path / "second"
    run_git("clone", "--quiet", origin, second, cwd=tmp_path)
    subprocess.run(["dvc", "pull", "--quiet"], cwd=second, env=env, check=True)
    assert (second / "data/detection/data.yaml").read_text() == "path: .\n"
    objects = [path.relative_to(tmp_path / "drive") for path in (tmp_path / "drive/files").rglob("*") if path.is_file()]
    assert objects
    assert all((clone / "build/copy" / name).is_file() for name in objects)


def test_every_shell_block_is_known_to_a_test() -> None:
    """A command that is added to the README must be tried by a test; these are, here, in test_render and test_run."""
    tried = {
        "pip install uv && uv run render.py detection --run",  # test_run; .ci/run runs it as it stands
        "uv run pytest",  # .ci/run
        "uv run render.py detection -p epochs 3 -p augmentation.degrees 5",  # test_render
        "uv run papermill build/detection/train_module_1_detection.ipynb build/out.ipynb -p epochs 1",  # test_render
        "git fetch origin kaggle-train-{module}-{experiment}-{time}",  # test_run, as the run prints them
        "git checkout kaggle-train-{module}-{experiment}-{time}",
        "dvc pull",
        # test_models, in a real bash
        'lib() { uv run python -m lib "$@"; }',
        (
            '_lib() { COMPREPLY=($(COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD _LIB_COMPLETE=bash_complete '
            "lib | cut -d, -f2)); }"
        ),
        "complete -F _lib lib",
        # test_sweep, with fewer epochs
        (
            "uv run python -m lib sweep experiments/000_det_sandbox.yaml experiments/000_loc_sandbox.yaml "
            "--sandbox build/sandbox --gpus-per-run 0"
        ),
        # test_preflight
        "uv run python -m lib preflight experiments/001_det_baseline.yaml --secrets secrets.json",
    }
    lines = {line for text in blocks() if "dvc remote add" not in text for line in text.splitlines() if line.strip()}
    assert lines == tried
