"""Commands for experiments: sandbox, new, explain, schema."""

from __future__ import annotations

import json
from pathlib import Path

import click

from lib.cli.options import PARAMETERS, Project, pass_project


@click.command()
@click.argument("module")
@click.option("--folder", type=Path, metavar="DIR", default=Path("build/sandbox"), help="The sandbox's folder.")
@click.option("--data", type=Path, metavar="DIR", help="A dataset in YOLO format, in place of the drawn one.")
@click.option("--json", "as_json", is_flag=True, help="Print repository and commit as JSON.")
@pass_project
def sandbox(project: Project, *, module: str, folder: Path, data: Path | None, as_json: bool) -> None:
    """Create or update the sandbox.

    A Git repository with this checkout, a DVC remote and a dataset of MODULE.

    \b
    Example:
        uv run python -m lib sandbox detection
    """
    from lib.experiment.load import load_experiment
    from lib.experiment.modules import find_module
    from lib.sandbox.make import make_sandbox

    experiment = load_experiment(find_module(module).small(project.root))
    made = make_sandbox(project.root, folder, experiment, data)
    if as_json:
        print(json.dumps({"repository": str(made.origin), "commit": made.commit}))
    else:
        print(f"Repository: {made.origin}\nDVC remote: {made.remote}")
        print(f"Commit:     {made.commit}\nImages:     {made.sheet}")


@click.command()
@click.argument("name")
@click.option("--from", "source", type=Path, metavar="FILE", required=True, help="The experiment to copy.")
@PARAMETERS
@pass_project
def new(project: Project, *, name: str, source: Path, parameters: tuple[tuple[str, str], ...]) -> None:
    """Create a new experiment from an existing one.

    Writes experiments/NUMBER_MODULE_NAME.yaml, with the comments of FILE and the module's next number.

    \b
    Example:
        uv run python -m lib new longer --from experiments/001_det_baseline.yaml -p epochs 300
    """
    from lib.experiment.authoring import new_experiment

    file, experiment = new_experiment(project.root, name, source, parameters)
    shown = file.relative_to(project.root)
    print(f"{shown}: {experiment.name}\nNext: uv run render.py {experiment.module} --experiment {shown}")


@click.command("explain")
@click.argument("file", type=Path)
@PARAMETERS
def explain_command(*, file: Path, parameters: tuple[tuple[str, str], ...]) -> None:
    """Explain each value of an experiment.

    Shows its meaning, its origin, and the ultralytics argument that is set from it.

    \b
    Example:
        uv run python -m lib explain experiments/001_det_baseline.yaml -p epochs 300
    """
    from lib.experiment.authoring import explain, show_explained

    print(show_explained(explain(file, parameters)))


@click.command()
@pass_project
def schema(project: Project) -> None:
    """Write experiments/schema.json, for editors.

    \b
    Example:
        uv run python -m lib schema
    """
    from lib.experiment.authoring import write_schema

    print(write_schema(project.root))
