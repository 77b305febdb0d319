"""The pages (README, docs, CONTRIBUTING) are true: their tree, commands, tables, examples and links."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
from conftest import ROOT, Stores, run_git

import lib.sync
from lib import errors
from lib.cli.app import app
from lib.experiment.load import flat, load_experiment, read_yaml
from lib.remotes.credentials import make_credentials
from lib.sweep.claims import PUSHES
from lib.sync.lock import CHECKPOINTS
from lib.sync.record import ASKS, PROTOCOL, RUNS, STOPS, DeclaredCopy, RunRecord, Stop
from lib.sync.refs import EARLIER
from lib.sync.remotes import CHECKPOINT, REPOSITORY

USERS = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", *(
    path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").glob("*.md"))
))}  # fmt: skip
"""The text of each page for users, by its path."""
PAGES = {**USERS, "CONTRIBUTING.md": (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")}
README_LINES = 180


def section(page: str, title: str) -> str:
    """Return the text below a heading of a page, up to the next heading of its level or above."""
    level = title.count("#")
    _, _, rest = PAGES[page].partition(f"\n{title}\n")
    assert rest, f"{page} has no section {title}"
    return re.split(rf"\n#{{1,{level}}} ", rest)[0]


def blocks(*pages: str, language: str = "bash") -> list[str]:
    """Return the code blocks of a language on these pages (none: all), without their indentation in lists."""
    found = [
        block
        for page in pages or PAGES
        for block in re.findall(rf"^( *)```{language}\n(.*?)^\1```$", PAGES[page], re.DOTALL | re.MULTILINE)
    ]
    return ["\n".join(line.removeprefix(indent) for line in text.splitlines()) for indent, text in found]


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub makes for the headings of a page."""
    found: set[str] = set()
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    for title in re.findall(r"^#+ (.+)$", prose, re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
        found.add(next(name for number in count() if (name := f"{slug}-{number}" if number else slug) not in found))
    return found


def links(text: str) -> list[str]:
    """Return the targets of a page's links and images that are not web addresses."""
    prose = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\(([^()\s]+)\)", prose)
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def test_the_readme_is_short() -> None:
    """It has at most 180 lines; everything else is in docs."""
    assert len(PAGES["README.md"].splitlines()) <= README_LINES


@pytest.mark.parametrize("page", PAGES)
def test_every_link_points_to_a_file_and_a_heading(page: str) -> None:
    """Each relative link names a file of the repository and, if it has an anchor, a heading of that file."""
    targets = links(PAGES[page])
    assert targets, f"{page} has no link"
    broken = []
    for target in targets:
        name, _, anchor = target.partition("#")
        file = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        is_there = file.is_relative_to(ROOT) and file.exists()
        if not is_there or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            broken.append(target)
    assert broken == []


def test_every_page_is_linked_from_the_readme() -> None:
    """A reader of the README finds each page of docs."""
    assert {name for name in USERS if name.startswith("docs/")} <= set(links(PAGES["README.md"]))


def test_the_tree_is_the_real_tree() -> None:
    """Each line names a path that is there, and every module and package of lib has its line."""
    place = section("CONTRIBUTING.md", "## Where does my code go?")
    (tree,) = re.findall(r"```\n(render\.py .*?)```", place, re.DOTALL)
    named = [line.split()[0] for line in tree.splitlines()]
    assert [name for name in named if not (ROOT / name).exists()] == []
    modules = {f"lib/{path.name}" for path in (ROOT / "lib").glob("*.py")} - {"lib/__init__.py"}
    packages = {f"lib/{path.parent.name}/" for path in (ROOT / "lib").glob("*/__init__.py")}
    assert modules | packages == {name for name in named if name.startswith("lib/")}


@pytest.mark.parametrize("page", PAGES)
def test_every_path_on_a_page_is_there(page: str) -> None:
    """A source file that a page names in code exists; KIND is a placeholder."""
    named = set(re.findall(r"`((?:lib|tests|notebooks|benchmarks|docs|\.ci)/[\w./-]+)`", PAGES[page]))
    assert [name for name in named if "KIND" not in name and not (ROOT / name).exists()] == []


def test_the_table_of_errors_names_every_error() -> None:
    """Every error has a row, and every row has an error."""
    rows = re.findall(r"^\| `(\w+)`", section("docs/failures.md", "## Errors"), re.MULTILINE)
    kinds = {
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.RunError) and kind is not errors.RunError
    }
    assert sorted(rows) == sorted(kinds)


def test_a_page_named_in_a_message_exists() -> None:
    """A page in a message, like `(docs/setup.md)`, exists with its heading; no message names the README."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "lib").rglob("*.py")]
    named = {found for text in texts for found in re.findall(r"(docs/[\w-]+\.md)(?:#([\w-]+))?", text)}
    assert named
    assert [
        name for name, anchor in named if name not in PAGES or (anchor and anchor not in anchors(PAGES[name]))
    ] == []
    titles = {title for text in texts for title in re.findall(r"README, ([A-Z]\w+)", text)}
    assert [title for title in titles if f"\n## {title}\n" not in PAGES["README.md"]] == []
    assert [text for text in texts if "(README)" in text] == []


@pytest.mark.parametrize(
    "expected",
    ["CUDA out of memory", "data.yaml not found", "Authentication failed", "failed to push data to the remote"],
)
def test_the_table_of_errors_quotes_the_errors_of_the_requirements(expected: str) -> None:
    """A search for the words on the screen finds the row."""
    assert expected in section("docs/failures.md", "## Errors")


def test_every_command_of_lib_is_documented() -> None:
    """The pages name each command `python -m lib NAME`, and no other."""
    documented = {name for text in USERS.values() for name in re.findall(r"python -m lib (\w+)", text)}
    assert documented == set(app.commands)
    contributed = set(re.findall(r"python -m lib (\w+)", PAGES["CONTRIBUTING.md"]))
    assert contributed <= set(app.commands)


def test_the_example_of_an_experiment_has_real_keys(tmp_path: Path) -> None:
    """The YAML of docs/experiments.md is accepted as values of the baseline."""
    (example,) = blocks("docs/experiments.md", language="yaml")
    (tmp_path / "example.yaml").write_text(example, encoding="utf-8")
    values = dict(flat(read_yaml(tmp_path / "example.yaml")))
    assert (
        load_experiment(ROOT / "experiments/001_det_baseline.yaml", values).training.epochs == values["training.epochs"]
    )


def test_the_example_of_secrets_json_has_the_right_form() -> None:
    """The JSON of docs/setup.md is accepted."""
    (example,) = blocks("docs/setup.md", language="json")
    assert make_credentials(json.loads(example), "docs/setup.md").github_token


def test_the_page_of_the_protocol_names_its_refs_files_and_fields() -> None:
    """docs/sync-protocol.md has every prefix that the code uses, every field of `run.json`, and one diagram."""
    tables = section("docs/sync-protocol.md", "## Refs and files")
    places = [RUNS, ASKS, STOPS, PUSHES, CHECKPOINTS, REPOSITORY, CHECKPOINT, "refs/kaggle/repository-"]
    assert [place for place in places if f"\n| `{place}<" not in tables] == []
    (row,) = [line for line in tables.splitlines() if STOPS in line]
    assert [name for name in Stop.model_fields if f"`{name}`" not in row] == []
    fields = tables.partition("| Field |")[2]
    assert set(re.findall(r"`(\w+)`", fields)) == RunRecord.model_fields.keys() | DeclaredCopy.model_fields.keys()
    assert f"| `protocol` | {PROTOCOL};" in fields
    earlier = section("docs/sync-protocol.md", "## Migration from protocol 1")
    assert [place for place in EARLIER if f"`{place.removeprefix('refs/heads/')}" not in earlier] == []
    assert len(blocks("docs/sync-protocol.md", language="mermaid")) == 1


def test_the_page_of_the_protocol_names_what_the_package_offers() -> None:
    """Each name of its table is one that `lib.sync` exports, and every function that changes a remote has its row."""
    named = set(re.findall(r"`(\w+)(?:\(\))?`", section("docs/sync-protocol.md", "## Functions")))
    assert named <= set(lib.sync.__all__)
    assert named >= {"sync_outputs", "recover", "check", "rehearse", "RunLock", "CheckpointPublisher"}


@pytest.mark.parametrize("command", [["-m", "lib"], ["render.py"], *(["-m", "lib", name] for name in app.commands)])
def test_every_command_has_a_help_text(command: list[str]) -> None:
    """`--help` works for each command, without importing heavy libraries."""
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


def test_recover_reports_that_nothing_is_left(stores: Stores) -> None:
    """`python -m lib recover` works in any clone."""
    done = subprocess.run(
        [sys.executable, "-m", "lib", "recover"],
        cwd=stores.clone, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "No unfinished publication is left."


def test_the_commands_for_the_dataset_work_as_written(tmp_path: Path) -> None:
    """The pages' DVC commands push a dataset that another clone can pull, and make a copy of the remote."""
    (block,) = [text for text in blocks("docs/setup.md") if "dvc remote add" in text]
    (copy,) = [text for text in blocks("docs/kaggle.md") if "dvc remote add" in text]
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


def test_every_shell_block_is_run_by_a_test() -> None:
    """Each shell command of the users' pages is in the list of those that the named tests run."""
    tried = {
        "pip install uv && uv run render.py detection --run",  # test_run; .ci/run runs it as written
        # test_kaggle, over an emulated Kaggle
        "uv run render.py detection --push",
        "uv run python -m lib watch detection",
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
    shown = [text for text in blocks(*USERS) if "dvc remote add" not in text]
    assert {line for text in shown for line in text.splitlines() if line.strip()} == tried


def test_the_commands_for_contributors_are_steps_of_the_ci() -> None:
    """Each command of CONTRIBUTING's first block is run by .ci/run."""
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8")
    (block,) = blocks("CONTRIBUTING.md")
    commands = [command.strip() for line in block.splitlines() for command in line.partition("#")[0].split("&&")]
    assert "uv run pytest" in commands
    assert [command for command in commands if command != "pip install uv" and f"step {command}" not in ci] == []
