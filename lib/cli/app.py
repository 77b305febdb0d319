"""The command line, `python -m lib COMMAND`. Each command imports the heavy libraries that it needs."""

from __future__ import annotations

import sys

import click

from lib.cli.experiments import explain, new, sandbox, schema
from lib.cli.models import compare, fetch, predict, rerun
from lib.cli.remotes import check, recover, status
from lib.cli.runs import sweep, watch
from lib.cli.setup import credentials, preflight, wheels
from lib.errors import RunError

COMMANDS = (sandbox, new, explain, schema, credentials, wheels, preflight, fetch, predict, compare, rerun, watch, sweep,
            status, recover, check)  # fmt: skip


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    commands={command.name or "": command for command in COMMANDS},
)
def app() -> None:
    """Kaggle Training: everything that can be done by hand."""


def main() -> None:
    """Run a command; print an error of this project as its message, without a traceback, and exit with 1."""
    try:
        app(complete_var="_LIB_COMPLETE")  # the default name would contain the spaces of `python -m lib`
    except RunError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
