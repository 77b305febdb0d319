#!/usr/bin/env python3
"""Render an experiment as a Kaggle notebook; optionally push it to Kaggle, or execute it here in a sandbox.

    uv run render.py detection            # write build/detection/train_module_1_detection.ipynb, ready to upload
    uv run render.py detection --push     # also push it to Kaggle, where it starts
    uv run render.py detection --run      # render it for this machine's sandbox and execute it from end to end

Guarantees: the rendered notebook is valid (experiment, parameters, notebook format), and Kaggle can clone its commit,
which is on the remote. The same input produces the same bytes. Every value is in the `parameters` cell, so that a later
`papermill … -p NAME VALUE` changes one value and keeps the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from lib.cli.options import KAGGLE_USER, SECRETS_DATASET, run_command_line
from lib.errors import RenderError, did_you_mean
from lib.experiment.load import SHORTCUTS, by_key, load_experiment, read_value
from lib.experiment.matrix import require_own_name
from lib.experiment.modules import find_module
from lib.experiment.schema import KEYS, Experiment
from lib.kaggle.kernel import kernel_metadata, push_rendered, pushing_user, refuse_retired
from lib.kaggle.notebook import (
    KAGGLE_WORDS,
    bake,
    configured_user,
    execute,
    parameters,
    read_notebook,
    read_sources,
    source,
    text_parameters,
    ways_to_kaggle,
    write_rendered,
)
from lib.remotes.addresses import public_url

PROJECT = Path(__file__).resolve().parent
BY_OPTION = {"module": "the argument MODULE", "experiment": "--experiment", "accelerator": "--accelerator"}


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("module")
@click.option(
    "--experiment",
    type=Path,
    metavar="FILE",
    help="Its YAML; default: the module's baseline, with --run its small one.",
)
@click.option(
    "-p",
    "parameter",
    nargs=2,
    multiple=True,
    metavar="NAME VALUE",
    help="A parameter of the notebook, or a key of the experiment (training.epochs); repeatable.",
)
@click.option(
    "--accelerator",
    type=click.Choice(list(KAGGLE_WORDS)),
    default="t4x2",
    help="Kaggle's accelerator; p100 is for other machines.",
)
@click.option("--output", type=Path, metavar="DIR", help="Folder of the files; default: build/MODULE.")
@click.option("--push", is_flag=True, help="Push it to Kaggle with the kaggle client, which starts it there.")
@click.option("--resume", is_flag=True, help="With --push: go on with a run that was stopped by hand.")
@click.option("--run", is_flag=True, help="Execute it on this machine, in a sandbox.")
@click.option(
    "--sandbox", type=Path, metavar="DIR", default=Path("build/sandbox"), help="With --run: the sandbox's folder."
)
@click.option(
    "--data", type=Path, metavar="DIR", help="With --run: a dataset in YOLO format, in place of the drawn one."
)
@click.option("--anyway", is_flag=True, help="With --push: push even if too few GPU hours are left of the week.")
@click.option("--allow-dirty", is_flag=True, help="Render although the tree is dirty or its commit is not pushed.")
@KAGGLE_USER
@SECRETS_DATASET
def main(
    *,
    module: str,
    experiment: Path | None,
    parameter: tuple[tuple[str, str], ...],
    accelerator: str,
    output: Path | None,
    push: bool,
    resume: bool,
    run: bool,
    sandbox: Path,
    data: Path | None,
    anyway: bool,
    allow_dirty: bool,
    kaggle_user: str,
    secrets_dataset: str,
) -> None:
    """Render the notebook of MODULE for Kaggle; with --push, start it there; with --run, execute it here."""
    about = find_module(module)
    if push and run:
        raise RenderError("--push is for Kaggle, --run for this machine.", remedy="leave one of them out.")
    if data is not None and not run:
        raise RenderError("--data is for --run only.", remedy="add --run, or track the dataset with DVC for Kaggle.")
    accelerator = "none" if run else accelerator
    refuse_retired(accelerator, push=push)
    notebook = read_notebook(read_sources(PROJECT))
    unknown_or_reserved(dict(parameter), notebook)
    texts = text_parameters(notebook)
    given = {name: text if name in texts else read_value(name, text) for name, text in parameter}
    changed = {name: value for name, value in given.items() if name in KEYS}
    file = experiment or (about.small(PROJECT) if run else PROJECT / about.baseline)
    chosen = load_experiment(file, changed, module=about.name)
    require_own_name(chosen, file, PROJECT / "experiments")
    baked = {name: value for name, value in given.items() if name not in changed}
    # validate shortcuts against the experiment now: a bad value must fail before the GPU starts
    load_experiment(chosen.model_dump(), by_key({name: baked[name] for name in SHORTCUTS if name in baked}))
    values = {
        "module": about.name,
        "experiment": chosen.model_dump(mode="json"),
        "accelerator": accelerator,
        "sandbox": str(sandbox.resolve()) if run else "build/sandbox",
    }
    if run and "repository" not in baked:
        values |= _sandbox(sandbox, chosen, data)
    elif not baked.get("repository") or not baked.get("commit"):
        values |= source(PROJECT, allow_dirty=allow_dirty)
    values |= baked
    values["repository"] = repository = public_url(str(values["repository"]))
    folder = output or PROJECT / "build" / about.name
    user = pushing_user(kaggle_user, repository) if push else kaggle_user or configured_user()
    kernel = None if run else kernel_metadata(about, chosen.key, accelerator, user, secrets_dataset)
    rendered = write_rendered(folder, about, bake(notebook, values), kernel)
    print(rendered, flush=True)
    if run:
        print(f"\nThe executed notebook: {execute(rendered.notebook, PROJECT)}")
        return
    print(f"Trains:   {chosen.name} at commit {values['commit']} of {repository}")
    if push:
        needed = 0.0
        if "repository" not in baked:  # else the published runs are another repository's
            from lib.remotes.credentials import Credentials
            from lib.results.estimate import hours_to_push

            needed = hours_to_push(PROJECT, Credentials(), chosen, accelerator, resume=resume, anyway=anyway)
        push_rendered(folder, needed)
    else:
        print(ways_to_kaggle(rendered, user))


# ── parameters ──────────────────────────────────────────────────────────────────────────────────────────────────────


def unknown_or_reserved(given: Mapping[str, Any], notebook: Any) -> None:  # noqa: ANN401  nbformat has no types
    """Raise `RenderError` for an unknown or reserved parameter: papermill would only warn and train something else."""
    known = [name for name in (*parameters(notebook), *KEYS) if name not in BY_OPTION]
    for name in given:
        if name in BY_OPTION:
            raise RenderError(f"-p {name}: this is chosen by {BY_OPTION[name]}.", remedy=f"use {BY_OPTION[name]}.")
        if name not in known:
            raise RenderError(
                f"-p {name}: the notebook has no such parameter.",
                remedy=did_you_mean(name, known, f"known are: {', '.join(known)}."),
            )


def _sandbox(folder: Path, chosen: Experiment, data: Path | None) -> dict[str, str]:
    from lib.sandbox.make import make_sandbox

    print(f"Making the sandbox in {folder} …", flush=True)
    made = make_sandbox(PROJECT, folder, chosen, data)
    print(f"Dataset:  {made.sheet}")
    return {"repository": str(made.origin), "commit": made.commit}


if __name__ == "__main__":
    run_command_line(main)
