"""The command line, `python -m lib COMMAND`. Each command imports the heavy libraries that it needs."""

from __future__ import annotations

import click

from lib.cli.experiments import explain_command, new, sandbox, schema
from lib.cli.models import compare_command, fetch, predict_command, rerun_command
from lib.cli.remotes import check_command, recover_command, status
from lib.cli.runs import stop, sweep, watch
from lib.cli.setup import credentials, preflight, wheels

COMMANDS = (sandbox, new, explain_command, schema, credentials, wheels, preflight, fetch, predict_command,
            compare_command, rerun_command, watch, stop, sweep, status, recover_command, check_command)  # fmt: skip


@click.group(commands=COMMANDS, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
def app() -> None:
    """Kaggle Training: everything that can be done by hand."""
