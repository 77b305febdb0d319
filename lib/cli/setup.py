"""Commands that prepare a run: credentials, wheels, preflight."""

from __future__ import annotations

from pathlib import Path

import click

from lib.cli.options import SECRETS


@click.command()
@click.argument("file", type=Path, default=Path("secrets.json"))
@click.option("--client", type=Path, metavar="JSON", help="Your OAuth client, or a service account's key.")
def credentials(*, file: Path, client: Path | None) -> None:
    """Make or complete secrets.json with you.

    Signs in to Google in the browser, asks for the keys, tries each at its service, and writes FILE.
    """
    from lib.remotes.login import make_secrets

    for account in make_secrets(file, client=client):
        print(account)


@click.command()
@click.argument("folder", type=Path, default=Path("build/wheels"))
@click.option("--python", metavar="VERSION", default="3.12", help="The Python of the machine that they are for.")
def wheels(*, folder: Path, python: str) -> None:
    """Gather what step 2 installs, for sessions without a network.

    Attach FOLDER as a Kaggle dataset.
    """
    from lib.kaggle.wheels import gather_wheels
    from lib.remotes.repository import find_project

    found = gather_wheels(find_project(Path.cwd()), folder, python=python)
    print(f"{found.count} wheels for Python {python}, {found.size / 2**20:.0f} MiB, in {found.folder}.")


@click.command()
@click.argument("experiment", type=Path)
@click.option("--accelerator", type=click.Choice(["t4x2", "p100", "none"]), default="none", help="What it must have.")
@SECRETS
def preflight(*, experiment: Path, accelerator: str, secrets: str) -> None:
    """Try on this machine what a run would need.

    EXPERIMENT is a YAML. Nothing stays; exits with 1 on errors.
    """
    from lib.experiment.load import load_experiment
    from lib.remotes.credentials import load_credentials
    from lib.train.preflight import preflight_here, show_preflight, stop_on_errors

    found = preflight_here(Path.cwd(), load_experiment(experiment), load_credentials(secrets), accelerator)
    print(show_preflight(found))
    stop_on_errors(found)
