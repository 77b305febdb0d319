"""Options that several commands share, and the `Project` that a command works on."""

import io
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import click

from lib.errors import HostError, RunError, SandboxError
from lib.log import redact_tracebacks
from lib.process import clean_environment
from lib.remotes.credentials import Credentials, load_credentials
from lib.remotes.repository import top_of


def find_project(start: Path) -> Path:
    """Return the root of the checkout that contains `start`. Raises `SandboxError` outside of a checkout."""
    for folder in (start.resolve(), *start.resolve().parents):
        if (folder / "render.py").is_file() and (folder / "uv.lock").is_file():
            return folder
    raise SandboxError(
        f"{start} is not in a checkout of this project, and no repository was given.",
        remedy="run the command inside a clone, or name a repository with -p repository URL.",
    )


@dataclass(frozen=True)
class Project:
    """The checkout and the credentials of a command, each read on first use; `secrets` is the path of secrets.json."""

    secrets: str = ""

    @cached_property
    def root(self) -> Path:
        """Return the root of the checkout that contains the current folder. Raises `SandboxError`."""
        return find_project(Path.cwd())

    @cached_property
    def clone(self) -> Path:
        """Return the root of the Git clone that contains the current folder; that folder if there is none."""
        return top_of(Path.cwd())

    @cached_property
    def credentials(self) -> Credentials:
        """Return the credentials from secrets.json and the environment. Raises `CredentialsError`."""
        found = load_credentials(self.secrets)
        redact_tracebacks(found.redact)
        return found


pass_project = click.make_pass_decorator(Project, ensure=True)
"""Passes a `Project` to a command that needs no credentials."""
PROJECT = click.option("--secrets", "project", type=Project, metavar="FILE", default="", help="Path of secrets.json.")
"""Adds --secrets to a command, and passes it the `Project` with the credentials of that file."""
KAGGLE_USER = click.option(
    "--kaggle-user",
    envvar="KAGGLE_USERNAME",
    metavar="NAME",
    default="",
    help="Owner of the kernel; default: the kaggle client's user.",
)
SECRETS_DATASET = click.option(
    "--secrets-dataset",
    metavar="OWNER/SLUG",
    default="",
    help="The private dataset with secrets.json; default: <kaggle user>/kaggle-training-secrets.",
)
PARAMETERS = click.option(
    "-p",
    "parameters",
    nargs=2,
    multiple=True,
    metavar="KEY VALUE",
    help="A key of the experiment (training.epochs, or epochs) and its value; repeatable.",
)


def run_command_line(command: click.Command) -> None:
    """Run a command; print an error of this project as its message, without a traceback, and exit with 1.

    Ctrl-C exits with 130, as in a shell: a sweep that somebody ended has not failed.
    """
    redact_tracebacks(Credentials().redact)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may lack a character; the command goes on
    try:
        clean_environment()
        # the default name of the variable would contain the spaces of `python -m lib`
        status = command.main(complete_var="_LIB_COMPLETE", standalone_mode=False)
    except RunError as error:
        print(f"Error: {error}", file=sys.stderr)
        status = 1
    except OSError as error:
        if error.filename is None:
            raise
        what, remedy = f"{error.filename}: {error.strerror}.", "name another place, or free some space."
        print(f"Error: {HostError(what, remedy=remedy)}", file=sys.stderr)
        status = 1
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except click.Abort as aborted:
        print("Aborted!", file=sys.stderr)
        status = 130 if isinstance(aborted.__cause__, KeyboardInterrupt) else 1
    raise SystemExit(status)


def complete_branch(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
    """Return the branches of finished runs that start with `begun`; none if the remote cannot be read."""
    from lib.results.published import list_runs
    from lib.sync import Refs

    try:
        names = list_runs(Refs(Project().clone, Project().credentials))
    except RunError:
        return []
    return [name for name in names if name.startswith(begun)]
