"""The rules of the house that a machine can check."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_git

MODULES = sorted((ROOT / "lib").rglob("*.py"))


def imports_of(path: Path) -> dict[str, bool]:
    """Give the modules a file imports, and whether it does so at its top."""
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


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_module_says_what_it_is(path: Path) -> None:
    """A docstring opens it."""
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_the_vault_knows_nothing_of_training() -> None:
    """lib/sync imports the outside by errors, commands and credentials alone."""
    inside = set().union(*(imports_of(path) for path in (ROOT / "lib/sync").glob("*.py")))
    outside = {name for name in inside if name.startswith("lib.") and not name.startswith("lib.sync")}
    assert outside == {"lib.errors", "lib.process", "lib.remotes.credentials"}


def test_imports_run_one_way() -> None:
    """No module of lib can reach itself through what it imports."""
    graph = {}
    for path in MODULES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        graph[name] = {found for found in imports_of(path) if found.startswith("lib")}

    def reach(name: str, seen: frozenset[str]) -> set[str]:
        below = graph.get(name, set()) - seen
        return below.union(*(reach(found, seen | below) for found in below))

    # a package's modules and its __init__ are one room
    rooms = {name for name in graph if name.count(".") < 2 and name != "lib.sync"}
    assert not [name for name in rooms if name in reach(name, frozenset())]


@pytest.mark.parametrize("name", ["install", "errors", "host", "commands", "credentials", "log", "progress"])
def test_what_runs_before_the_packages_needs_the_standard_library_alone(name: str) -> None:
    """Step 2 runs on a bare Python; another library may be asked for where its absence is answered."""
    top = {found.partition(".")[0] for found, is_top in imports_of(ROOT / f"lib/{name}.py").items() if is_top}
    assert top <= set(sys.stdlib_module_names) | {"lib", "__future__"}


def test_only_the_rooms_that_run_a_model_import_ultralytics() -> None:
    """One place to look when the library changes."""
    users = {path.name for path in MODULES if any(name.startswith("ultralytics") for name in imports_of(path))}
    assert users == {"training.py", "trainer.py", "evaluation.py", "export.py", "prediction.py"}


def test_only_commands_and_install_start_processes() -> None:
    """One door, where everything is limited in time and redacted."""
    users = {path.name for path in MODULES if "subprocess" in imports_of(path)}
    assert users == {"commands.py", "install.py"}


def test_only_the_cluster_imports_ray() -> None:
    """It is an optional group."""
    users = {path.name for path in MODULES if any(name.partition(".")[0] == "ray" for name in imports_of(path))}
    assert users == {"cluster.py"}


def test_no_module_shadows_a_library() -> None:
    """`secrets.py`, `git.py` or `dvc.py` on the path would be imported in its place."""
    assert not {path.stem for path in MODULES} & {"secrets", "git", "dvc", "wandb", "torch"}


def test_no_registry_is_named_outside_the_lock() -> None:
    """The lock is what uv writes; elsewhere a mirror may serve."""
    listed = run_git(
        "ls-files", "--cached", "--others", "--exclude-standard", "*.py", "*.toml", "*.md", "*.yaml", cwd=ROOT
    ).splitlines()
    hosts = re.compile(r"(pypi|pythonhosted)\.org")
    assert [name for name in listed if (ROOT / name).is_file() and hosts.search((ROOT / name).read_text())] == []
