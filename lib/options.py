"""The options that several commands have."""

import click

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
SECRETS = click.option("--secrets", metavar="FILE", default="", help="Path of secrets.json.")
