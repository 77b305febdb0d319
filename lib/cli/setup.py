"""Commands that prepare a run: credentials, wheels, preflight."""

from __future__ import annotations

from pathlib import Path

import click

from lib.cli.options import PROJECT, Project, pass_project


@click.command()
@click.argument("file", type=Path, default=Path("secrets.json"))
@click.option("--client", type=Path, metavar="JSON", help="Your OAuth client, or a service account's key.")
@click.option("--test-notify", is_flag=True, help="Only send a message to each address of NOTIFY_URLS.")
def credentials(*, file: Path, client: Path | None, test_notify: bool) -> None:
    """Make or complete secrets.json in a dialog.

    Signs you in to Google in the browser, asks for the keys, checks each with its service, and writes FILE.

    \b
    Example:
        uv run python -m lib credentials secrets.json
    """
    from lib.remotes.login import make_secrets

    if test_notify:
        _send_test(file)
        return
    for account in make_secrets(file, client=client):
        print(account)


def _send_test(file: Path) -> None:
    """Send a message to each address of `NOTIFY_URLS` in a `secrets.json`, or in the environment without that file."""
    from lib.errors import CredentialsError
    from lib.remotes.credentials import load_credentials
    from lib.remotes.messages import check_addresses, send

    found = load_credentials(str(file) if file.exists() else "")
    if not found.notify_urls:
        raise CredentialsError(
            f"{found.source} has no NOTIFY_URLS.", state="nothing was sent.", remedy="add it (docs/setup.md)."
        )
    services = check_addresses(found)
    if problems := send(found, "Kaggle Training", "This is how a message about a run arrives."):
        raise CredentialsError(
            "\n".join(problems), state="the other messages were sent.", remedy="correct these addresses and try again."
        )
    print(f"Sent to: {services}.")


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

    found = preflight_here(project.clone, load_experiment(experiment), project.credentials, accelerator)
    print(show_preflight(found))
    stop_on_errors(found)
