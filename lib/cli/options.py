"""Options that several commands share."""

from pathlib import Path

import click
from click.shell_completion import CompletionItem

KAGGLE_USER = click.option(
    "--kaggle-user",
    envvar="KAGGLE_USERNAME",
    metavar="NAME",
    default="",
    help="Whose kernel it is; without it the kaggle client's user.",
)
SECRETS_DATASET = click.option(
    "--secrets-dataset",
    metavar="OWNER/SLUG",
    default="",
    help="The private dataset with secrets.json; without it <kaggle user>/kaggle-training-secrets.",
)
PARAMETERS = click.option(
    "-p",
    "parameters",
    nargs=2,
    multiple=True,
    metavar="KEY VALUE",
    help="A key of the experiment (training.epochs, or epochs) and its value; may be given often.",
)
OLDER_THAN = click.option(
    "--older-than", type=float, metavar="SECONDS", default=600.0, help="A run that has not moved for so long is dead."
)


def complete_branch(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return the branches of finished runs that start with `begun`; none if the remote cannot be read."""
    from lib.errors import RunError
    from lib.remotes.credentials import load_credentials
    from lib.results.published import list_runs
    from lib.sync import Refs

    try:
        names = list_runs(Refs(Path.cwd(), load_credentials()))
    except RunError:
        return []
    return [CompletionItem(name) for name in names if name.startswith(begun)]


SECRETS = click.option("--secrets", metavar="FILE", default="", help="Path of secrets.json.")
