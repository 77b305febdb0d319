#!/usr/bin/env python3
"""Run a module over an emulated Google Drive and a private repository on an emulated Git host, with the real clients.

    uv run tests/emulated_run.py detection -p epochs 1

All other options are those of `render.py MODULE --run`. What the run publishes stays in the sandbox's folder.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
from conftest import ROOT
from emulated_services import EmulatedServices

import render
from lib.cli.options import run_command_line
from lib.experiment.load import load_experiment
from lib.experiment.modules import find_module
from lib.sandbox.make import make_sandbox


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("module")
@click.option("--sandbox", type=Path, metavar="DIR", default=ROOT / "build/emulated", help="Where to make the sandbox.")
@click.option("--data", type=Path, metavar="DIR", help="A dataset in YOLO format, in place of the drawn one.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def main(*, module: str, sandbox: Path, data: Path | None, words: tuple[str, ...]) -> None:
    """Make a sandbox for MODULE, serve its repository and its DVC remote on loopback, and execute the notebook there.

    WORDS are further options of render.py.
    """
    made = make_sandbox(ROOT, sandbox, load_experiment(find_module(module).small(ROOT)), data)
    # outside of every folder that a run could publish
    with (
        tempfile.TemporaryDirectory(prefix="kaggle-training-emulated-") as folder,
        EmulatedServices(Path(folder), made) as services,
        services.around_this_process(),
    ):
        print(f"Emulated: {services}, while this command runs; what is published stays in {sandbox}", flush=True)
        given = [word for name, value in services.parameters.items() for word in ("-p", name, value)]
        render.main([module, "--run", "--sandbox", str(sandbox), *given, *words], standalone_mode=False)


if __name__ == "__main__":
    run_command_line(main)
