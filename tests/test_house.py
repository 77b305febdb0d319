"""Rules of the project's structure that a machine can check."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_git

MODULES = sorted(path for path in (ROOT / "lib").rglob("*.py") if path.stat().st_size)  # most __init__.py are empty


def imports_of(path: Path) -> dict[str, bool]:
    """Return the modules that a file imports, and whether it imports them at its top."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: dict[str, bool] = {}
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        for name in names:
            found[name] = found.get(name, False) or node in tree.body
    return found


def users_of(library: str) -> set[str]:
    """Return the modules of lib that import a library."""
    return {
        path.relative_to(ROOT / "lib").as_posix()
        for path in MODULES
        if any(name.partition(".")[0] == library for name in imports_of(path))
    }


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_module_has_a_docstring(path: Path) -> None:
    """Each module of lib begins with a docstring."""
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "name", ["kaggle/install", "errors", "kaggle/host", "process", "remotes/credentials", "log", "progress", "files"]
)
def test_modules_used_before_the_installation_need_only_the_standard_library(name: str) -> None:
    """Steps 0 to 2 run on a bare Python; other libraries may be imported only inside functions."""
    top = {found.partition(".")[0] for found, is_top in imports_of(ROOT / f"lib/{name}.py").items() if is_top}
    assert top <= set(sys.stdlib_module_names) | {"lib", "__future__"}


def test_only_modules_that_run_a_model_import_ultralytics() -> None:
    """Only training, export, evaluation and prediction import ultralytics."""
    assert users_of("ultralytics") == {
        "train/launch.py", "train/weights.py", "train/trainer.py", "train/export.py", "results/evaluate.py",
        "results/matching.py", "results/predict.py",
    }  # fmt: skip


def test_only_one_module_starts_processes() -> None:
    """Only `lib/process.py` starts other programs: it decides what they get of the environment."""
    assert users_of("subprocess") == {"process.py"}
    assert users_of("git") == set()  # GitPython starts git with the whole environment


def test_only_the_sweep_engine_imports_ray() -> None:
    """Ray is in an optional dependency group."""
    assert users_of("ray") == {"sweep/engine.py"}


def test_no_module_shadows_a_library() -> None:
    """A module called `secrets`, `git` or `dvc` on the path would be imported in place of the library."""
    assert not {path.stem for path in MODULES} & {"secrets", "git", "dvc", "wandb", "torch"}


def test_no_registry_is_named_outside_the_lock() -> None:
    """No file but the lock names a package registry: a mirror may be configured."""
    listed = run_git(
        "ls-files", "--cached", "--others", "--exclude-standard", "*.py", "*.toml", "*.md", "*.yaml", cwd=ROOT
    ).splitlines()
    hosts = re.compile(r"(pypi|pythonhosted)\.org")
    assert [name for name in listed if (ROOT / name).is_file() and hosts.search((ROOT / name).read_text())] == []
