"""Commands for experiments: sandbox, new, explain, schema."""

from __future__ import annotations

import json
from pathlib import Path

import click

from lib.cli.options import PARAMETERS


@click.command()
@click.argument("module")
@click.option("--folder", type=Path, metavar="DIR", default=Path("build/sandbox"), help="Where the sandbox stands.")
@click.option("--data", type=Path, metavar="DIR", help="A dataset in YOLO format, in place of the drawn one.")
@click.option("--json", "as_json", is_flag=True, help="Print repository and commit as JSON.")
def sandbox(*, module: str, folder: Path, data: Path | None, as_json: bool) -> None:
    """Make the sandbox, or bring it up to date.

    A Git repository with this checkout, a DVC remote and a dataset of MODULE.
    """
    from lib.experiment.load import load_experiment
    from lib.experiment.modules import find_module
    from lib.remotes.repository import find_project
    from lib.sandbox.make import make_sandbox

    project = find_project(Path.cwd())
    made = make_sandbox(project, folder, load_experiment(find_module(module).small(project)), data)
    if as_json:
        print(json.dumps({"repository": str(made.origin), "commit": made.commit}))
    else:
        print(
            f"Repository: {made.origin}\nDVC remote: {made.remote}\nCommit:     {made.commit}\nPictures:   {made.sheet}"
        )


@click.command()
@click.argument("name")
@click.option("--from", "source", type=Path, metavar="FILE", required=True, help="The experiment it begins as.")
@PARAMETERS
def new(*, name: str, source: Path, parameters: tuple[tuple[str, str], ...]) -> None:
    """Make the next experiment from another one.

    Writes experiments/NUMBER_MODULE_NAME.yaml with the comments of FILE.
    """
    from lib.experiment.authoring import new_experiment
    from lib.remotes.repository import find_project

    project = find_project(Path.cwd())
    file, experiment = new_experiment(project, name, source, parameters)
    shown = file.relative_to(project)
    print(f"{shown}: {experiment.name}\nNext: uv run render.py {experiment.module} --experiment {shown}")


@click.command()
@click.argument("file", type=Path)
@PARAMETERS
def explain(*, file: Path, parameters: tuple[tuple[str, str], ...]) -> None:
    """Show what each value of an experiment means.

    Also where it comes from, and the ultralytics argument it becomes.
    """
    from lib.experiment.authoring import explain as look
    from lib.experiment.authoring import show_explained

    print(show_explained(look(file, parameters)))


@click.command()
def schema() -> None:
    """Write experiments/schema.json, for editors."""
    from lib.experiment.authoring import write_schema
    from lib.remotes.repository import find_project

    print(write_schema(find_project(Path.cwd())))
