"""A notebook with its values baked in, the files that Kaggle takes, and its execution here.

Guarantees: what is written is valid and complete or not there; the same input gives the same bytes; every value stands
in the `parameters` cell, so that a later `papermill … -p NAME VALUE` changes that one and keeps the others.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from lib.errors import RenderError, RunError
from lib.experiment.modules import Module

# What Kaggle calls an accelerator in a notebook, and in kernel-metadata.json.
KAGGLE_WORDS = {
    "t4x2": ("nvidiaTeslaT4", "NvidiaTeslaT4"),
    "p100": ("nvidiaTeslaP100", "NvidiaTeslaP100"),
    "none": ("none", ""),
}

GRACE = 30.0  # seconds an interrupted run has to end by itself


@dataclass(frozen=True)
class Rendered:
    """The files of a rendered notebook."""

    notebook: Path
    script: Path
    kernel: Path | None

    def __str__(self) -> str:
        files = {"Notebook": self.notebook, "One cell": self.script, "Kernel": self.kernel}
        return "\n".join(f"{f'{name}:':9} {file}" for name, file in files.items() if file)


def read_notebook(text: str) -> Any:  # noqa: ANN401  nbformat has no types
    """Read the text of `notebooks/train.py` as a notebook."""
    import jupytext

    return jupytext.reads(text, fmt="py:percent")


def _parameter_cell(notebook: Any) -> Any:  # noqa: ANN401
    return next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))


def parameters(notebook: Any) -> dict[str, str]:  # noqa: ANN401
    """Give the notebook's parameters with the comment that explains each, as papermill reads them."""
    from papermill.translators import papermill_translators

    translator = papermill_translators.find_translator("python3", "python")
    return {found.name: found.help for found in translator.inspect(_parameter_cell(notebook))}


def bake(notebook: Any, values: Mapping[str, Any], accelerator: str) -> Any:  # noqa: ANN401
    """Write the values into the `parameters` cell, each in its own line, and make the notebook Kaggle's."""
    from papermill.translators import papermill_translators

    translator = papermill_translators.find_translator("python3", "python")
    cell = _parameter_cell(notebook)
    lines = []
    for line in cell.source.splitlines():
        name, _, comment = line.partition("  # ")
        name = name.partition(" = ")[0]
        if name not in values:
            lines.append(line)
            continue
        # papermill's own translation, by which `papermill -p` would write it
        _, _, text = translator.codify({name: values[name]}, "").partition("\n")
        lines += [f"{text.strip()}  # {comment}"] if text.count("\n") == 1 else [f"# {comment}", text.strip()]
    cell.source = "\n".join(lines)
    word, _ = KAGGLE_WORDS[accelerator]
    notebook.metadata = {
        "kaggle": {
            "accelerator": word,
            "dataSources": [],
            "isGpuEnabled": accelerator != "none",
            "isInternetEnabled": True,
            "language": "python",
            "sourceType": "notebook",
        },
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for index, each in enumerate(notebook.cells):
        each["id"] = hashlib.sha256(f"{index}\0{each.source}".encode()).hexdigest()[:8]
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def one_cell(notebook: Any, about: Module) -> str:  # noqa: ANN401
    """Give the whole run as one cell to paste: Markdown becomes comments."""
    parts = [f"# {about.title}, the whole run as one cell. Made by render.py from notebooks/train.py."]
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append("\n".join(f"# {line}".rstrip() for line in cell.source.splitlines()))
        else:
            parts.append(cell.source)
    return "\n\n".join(parts) + "\n"


def kernel_metadata(about: Module, accelerator: str, user: str, dataset: str) -> dict[str, Any]:
    """Give what `kaggle kernels push` reads: a private kernel with internet, GPU and the secrets dataset."""
    title = f"Train Module {about.number} {about.name.capitalize()}"
    slug = title.lower().replace(" ", "-")  # Kaggle makes the same of the title
    owner = user or "INSERT_KAGGLE_USERNAME_HERE"
    return {
        "id": f"{owner}/{slug}",
        "title": title,
        "code_file": f"{about.notebook}.ipynb",
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": accelerator != "none",
        "enable_internet": True,
        "machine_shape": KAGGLE_WORDS[accelerator][1],
        "dataset_sources": [dataset or f"{owner}/kaggle-training-secrets"],
        "competition_sources": [],
        "kernel_sources": [],
        "model_sources": [],
        "keywords": [],
    }


def configured_user() -> str:
    """Give the user that the kaggle client is set up for; its key is not read."""
    file = Path(os.environ.get("KAGGLE_CONFIG_DIR", Path.home() / ".kaggle")) / "kaggle.json"
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["username"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def write_rendered(folder: Path, about: Module, notebook: Any, kernel: Mapping[str, Any] | None) -> Rendered:  # noqa: ANN401
    """Validate the notebook and write its files, each complete or not at all."""
    import nbformat

    nbformat.validate(notebook)
    folder.mkdir(parents=True, exist_ok=True)
    files = Rendered(
        folder / f"{about.notebook}.ipynb",
        folder / f"{about.notebook}.py",
        folder / "kernel-metadata.json" if kernel else None,
    )
    _write(files.notebook, nbformat.writes(notebook).rstrip("\n") + "\n")
    _write(files.script, one_cell(notebook, about))
    if files.kernel is not None:
        _write(files.kernel, json.dumps(kernel, indent=2) + "\n")
    else:
        # a notebook of this machine's sandbox must not be pushed with the metadata of an earlier one
        (folder / "kernel-metadata.json").unlink(missing_ok=True)
    return files


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def ways_to_kaggle(files: Rendered, user: str) -> str:
    """Say what to do with a rendered notebook."""
    unknown = "No Kaggle user is known: set KAGGLE_USERNAME or --kaggle-user before `uv run kaggle kernels push`.\n"
    folder = files.notebook.parent
    return f"{'' if user else unknown}Upload the notebook to Kaggle, or run: uv run kaggle kernels push -p {folder}"


def public_url(url: str) -> str:
    """Give the address that Kaggle clones: https in place of ssh, and never a user name or token in it."""
    ssh = re.fullmatch(r"(?:ssh://)?git@([^:/]+)[:/](.+)", url)
    if ssh:
        return f"https://{ssh[1]}/{ssh[2]}"
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        return url
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def source(project: Path, *, allow_dirty: bool, given: Mapping[str, Any]) -> dict[str, str]:
    """Give the repository and the commit that a run clones: what is given, or those of the checkout `project`.

    Raises `RenderError` for what could not be cloned, or is not what lies here.
    """
    import git

    try:
        repo = git.Repo(project)
        commit = repo.head.commit.hexsha
    except (git.InvalidGitRepositoryError, ValueError):
        raise RenderError(
            f"{project} is no Git checkout with a commit.", remedy="clone the project with Git and render there."
        ) from None
    with repo:
        if given.get("repository") and given.get("commit"):
            return {"repository": str(given["repository"]), "commit": str(given["commit"])}
        if "origin" not in [remote.name for remote in repo.remotes]:
            raise RenderError(
                "this checkout has no remote `origin` that a run could clone.",
                state="nothing was written.",
                remedy="`git remote add origin https://github.com/YOU/REPOSITORY.git && git push -u origin HEAD`.",
            )
        if not allow_dirty:
            changed = repo.git.status("--porcelain").splitlines()
            if changed:
                raise RenderError(
                    f"the tree is dirty, and a run clones the commit: {', '.join(line[3:] for line in changed[:5])}"
                    f"{' …' if len(changed) > 5 else ''}.",  # noqa: PLR2004
                    state="nothing was written.",
                    remedy="commit and push, or render the commit as it is with --allow-dirty.",
                )
            _require_on_remote(repo, commit)
        return {"repository": public_url(repo.remotes.origin.url), "commit": commit}


def _require_on_remote(repo: Any, commit: str) -> None:  # noqa: ANN401  GitPython's Repo
    import git

    try:
        tips = {line.split()[0] for line in repo.git.ls_remote("origin", kill_after_timeout=60).splitlines()}
        if commit in tips:
            return
        repo.git.fetch("--quiet", "origin", kill_after_timeout=300)  # only remote-tracking branches move
        if repo.git.branch("--remotes", "--contains", commit, "--list", "origin/*").strip():
            return
    except git.GitCommandError as error:
        raise RenderError(
            f"the remote cannot be asked for commit {commit[:12]}: {str(error.stderr).strip()}",
            state="nothing was written.",
            remedy="check the network and `git remote -v`, or render without asking with --allow-dirty.",
        ) from None
    raise RenderError(
        f"commit {commit[:12]} is not on the remote, and a run could not clone it.",
        state="nothing was written.",
        remedy="`git push`, then render again (--allow-dirty renders all the same).",
    )


def executed_copy(notebook: Path) -> Path:
    """Give the file that an execution of the notebook is kept in."""
    return notebook.with_suffix(".executed.ipynb")


def execute(notebook: Path, cwd: Path) -> Path:
    """Execute a rendered notebook with papermill, showing what it prints while it prints it; gives the executed one.

    Interrupted, it interrupts the run and waits for it to end. Raises `RunError` where the run stopped with an error.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    executed = executed_copy(notebook)
    try:
        papermill.execute_notebook(
            str(notebook), str(executed), kernel_name="python3", cwd=str(cwd), progress_bar=False,
            stdout_file=sys.stdout, stderr_file=sys.stderr,
            # the kernel's own remarks (no encryption on loopback, an interrupt at its end) are none of the run's
            extra_arguments=["--IPKernelApp.log_level=50"],
            # an interrupted run ends its processes and lets go of what it holds, before its kernel is killed
            config=Config({"KernelManager": {"shutdown_wait_time": GRACE}}),
        )  # fmt: skip
    except PapermillExecutionError as error:
        raise RunError(
            f"the run stopped: {error.ename}: {error.evalue}", remedy=f"everything it printed is in {executed}."
        ) from None
    return executed
