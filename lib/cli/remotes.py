"""Commands for both remotes: status, recover, check."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from lib.cli.options import OLDER_THAN, SECRETS


@click.command()
@SECRETS
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def status(*, secrets: str, as_json: bool) -> None:
    """Show where every experiment stands.

    Finished runs with metrics, checkpoints, sessions and open publications, from the Git remote alone.
    """
    from lib.remotes.credentials import load_credentials
    from lib.results.status import read_status, show_status

    entries = read_status(Path.cwd(), load_credentials(secrets))
    print(json.dumps([entry.as_dict() for entry in entries], indent=2) if as_json else show_status(entries))


@click.command()
@OLDER_THAN
@SECRETS
def recover(*, older_than: float, secrets: str) -> None:
    """Undo what dead runs left unfinished.

    On both remotes of this clone; waits until their lease is over.
    """
    import time

    from lib.remotes.clone import clone_with
    from lib.remotes.credentials import load_credentials
    from lib.sync import recover as settle

    credentials = load_credentials(secrets)
    deadline = time.monotonic() + older_than
    with clone_with(Path.cwd(), credentials) as clone:
        while left := settle(clone, credentials, older_than=older_than):
            if time.monotonic() > deadline + 60:
                print(f"{left} unfinished publications are alive or unreadable here, and are left alone.")
                raise SystemExit(1)
            print(f"Waiting for {left} unfinished publications to end or to expire …", flush=True)
            time.sleep(min(15, max(1, older_than / 10)))
    print("No unfinished publication is left.")


@click.command()
@OLDER_THAN
@SECRETS
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def check(*, older_than: float, secrets: str, as_json: bool) -> None:
    """Look at both remotes and say what is wrong.

    Nothing is deleted; exits with 1 if something is wrong.
    """
    from lib.remotes.clone import clone_with
    from lib.remotes.credentials import load_credentials
    from lib.sync import check as look

    def note(line: str) -> None:
        print(line, file=sys.stderr)

    credentials = load_credentials(secrets)
    with clone_with(Path.cwd(), credentials) as clone:
        checked = look(clone, credentials, older_than=older_than, say=note)
    if as_json:
        print(checked.to_json())
    else:
        for finding in checked.findings:
            print(f"{finding.kind}: {finding.what}.\n  What to do: {finding.remedy}.")
        print(
            f"{checked.refs} branches and tags, {checked.objects} objects, {checked.intents} unfinished publications:"
        )
        print("Nothing is wrong." if checked.is_healthy else "Something is wrong.")
    raise SystemExit(0 if checked.is_healthy else 1)
