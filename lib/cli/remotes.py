"""Commands for both remotes: status, recover, check."""

from __future__ import annotations

import json

import click

from lib.cli.options import PROJECT, Project


@click.command()
@PROJECT
@click.option("--json", "as_json", is_flag=True, help="Print the state as JSON.")
def status(project: Project, *, as_json: bool) -> None:
    """Show the state of every experiment.

    Lists finished runs with metrics, checkpoints, sessions and unfinished publications, from the Git remote alone.

    \b
    Example:
        uv run python -m lib status --secrets secrets.json
    """
    from lib.results.status import read_status, show_status

    entries = read_status(project.clone, project.credentials)
    print(json.dumps([entry.as_dict() for entry in entries], indent=2) if as_json else show_status(entries))


@click.command("recover")
@PROJECT
def recover_command(project: Project) -> None:
    """Roll back or finish what dead runs left on both remotes.

    Asks every run whether it lives, and waits for the answers until their leases have expired.

    \b
    Example:
        uv run python -m lib recover --secrets secrets.json
    """
    from lib.remotes.clone import clone_with
    from lib.sync import recover

    with clone_with(project.clone, project.credentials) as clone:
        left = recover(clone, project.credentials)
    if left:
        print(f"{left} runs are alive or cannot be recovered here; they were left unchanged.")
        raise SystemExit(1)
    print("No unfinished publication is left.")


@click.command("check")
@PROJECT
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def check_command(project: Project, *, as_json: bool) -> None:
    """Check both remotes and report what is wrong.

    Deletes nothing; the exit status is 1 if something is wrong.

    \b
    Example:
        uv run python -m lib check --secrets secrets.json
    """
    from lib.remotes.clone import clone_with
    from lib.sync import check

    with clone_with(project.clone, project.credentials) as clone:
        found = check(clone, project.credentials)
    if as_json:
        print(found.to_json())
    else:
        for finding in found.findings:
            print(f"{finding.kind}: {finding.what}.\n  What to do: {finding.remedy}.")
        print(f"{found.refs} branches and tags, {found.objects} objects, {found.runs} runs under way:")
        print("Nothing is wrong." if found.is_healthy else "Something is wrong.")
    raise SystemExit(0 if found.is_healthy else 1)
