"""The command line, `python -m lib COMMAND`. Each command imports the heavy libraries that it needs."""

from __future__ import annotations

import sys

import click

from lib.cli.experiments import explain_command, new, sandbox, schema
from lib.cli.models import compare_command, fetch, predict_command, rerun_command
from lib.cli.remotes import check_command, recover_command, status
from lib.cli.runs import sweep, watch
from lib.cli.setup import credentials, preflight, wheels
from lib.errors import RunError

COMMANDS = (sandbox, new, explain_command, schema, credentials, wheels, preflight, fetch, predict_command,
            compare_command, rerun_command, watch, sweep, status, recover_command, check_command)  # fmt: skip


@click.group(commands=COMMANDS, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
def app() -> None:
    """Kaggle Training: everything that can be done by hand."""


def main() -> None:
    """Run a command; print an error of this project as its message, without a traceback, and exit with 1."""
    try:
        app(complete_var="_LIB_COMPLETE")  # the default name would contain the spaces of `python -m lib`
    except RunError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
