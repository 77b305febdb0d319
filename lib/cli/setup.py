"""Commands that prepare a run: credentials, wheels, preflight."""

from __future__ import annotations

from pathlib import Path

import click

from lib.cli.options import PROJECT, Project, pass_project


@click.command()
@click.argument("file", type=Path, default=Path("secrets.json"))
@click.option("--client", type=Path, metavar="JSON", help="Your OAuth client, or a service account's key.")
def credentials(*, file: Path, client: Path | None) -> None:
    """Make or complete secrets.json in a dialog.

    Signs you in to Google in the browser, asks for the keys, checks each with its service, and writes FILE.

    \b
    Example:
        uv run python -m lib credentials secrets.json
    """
    from lib.remotes.login import make_secrets

    for account in make_secrets(file, client=client):
        print(account)


@click.command()
@click.argument("folder", type=Path, default=Path("build/wheels"))
@click.option("--python", metavar="VERSION", default="3.12", help="The Python version of that machine.")
@pass_project
def wheels(project: Project, *, folder: Path, python: str) -> None:
    """Download what step 2 installs, for sessions without internet.

    Attach FOLDER as a Kaggle dataset.

    \b
    Example:
        uv run python -m lib wheels build/wheels
    """
    from lib.kaggle.wheels import gather_wheels

    found = gather_wheels(project.root, folder, python=python)
    size = sum(path.stat().st_size for path in found)
    print(f"{len(found)} wheels for Python {python}, {size / 2**20:.0f} MiB, in {folder}.")


@click.command()
@click.argument("experiment", type=Path)
@click.option("--accelerator", type=click.Choice(["t4x2", "p100", "none"]), default="none", help="The required GPUs.")
@PROJECT
def preflight(project: Project, *, experiment: Path, accelerator: str) -> None:
    """Check on this machine everything that a run needs.

    EXPERIMENT is a YAML file. The checks leave nothing behind; the exit status is 1 on errors.

    \b
    Example:
        uv run python -m lib preflight experiments/001_det_baseline.yaml --secrets secrets.json
    """
    from lib.experiment.load import load_experiment
    from lib.train.preflight import preflight_here, show_preflight, stop_on_errors

    found = preflight_here(Path.cwd(), load_experiment(experiment), project.credentials, accelerator)
    print(show_preflight(found))
    stop_on_errors(found)
