"""Render a notebook with its parameters, write the files for Kaggle, and execute the notebook on this machine.

Guarantees: every file is written complete or not at all, and the notebook is valid; the same input produces the same
bytes. Every value is in the `parameters` cell, so that a later `papermill … -p NAME VALUE` changes that value and keeps
the others. Cannot: guarantee that a run can clone a commit rendered with `--allow-dirty`, which is not checked.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.errors import CommandError, RenderError, RunError
from lib.experiment.modules import Module
from lib.files import write_whole
from lib.process import MINUTE, run_command
from lib.remotes.addresses import public_url
from lib.remotes.clone import find_git_remote, require_committed
from lib.remotes.credentials import Credentials

# Kaggle's names of an accelerator: in a notebook, and in kernel-metadata.json.
KAGGLE_WORDS = {
    "t4x2": ("nvidiaTeslaT4", "NvidiaTeslaT4"),
    "p100": ("nvidiaTeslaP100", "NvidiaTeslaP100"),
    "none": ("none", ""),
}

SOURCES = ("notebooks/train.py", "notebooks/bootstrap.py")
"""The files of the project that make a notebook: the story, and what its cell tagged `bootstrap` imports."""
FOLDED = {"jupyter": {"source_hidden": True}, "_kg_hide-input": True}
"""The metadata by which Jupyter and Kaggle show a cell collapsed."""

SHA1 = 40  # hexadecimal digits of an object's name
GRACE = 30.0  # seconds that an interrupted run has to end by itself


@dataclass(frozen=True)
class Rendered:
    """The files of a rendered notebook."""

    notebook: Path
    script: Path
    kernel: Path | None

    def __str__(self) -> str:
        files = {"Notebook": self.notebook, "One cell": self.script, "Kernel": self.kernel}
        return "\n".join(f"{f'{name}:':9} {file}" for name, file in files.items() if file)


def read_sources(project: Path) -> dict[str, str]:
    """Return {path: text} of the files in `project` that make a notebook."""
    return {name: (project / name).read_text(encoding="utf-8") for name in SOURCES}


def read_notebook(sources: Mapping[str, str]) -> Any:  # noqa: ANN401  nbformat has no types
    """Return the notebook that `sources` make: the cell tagged `bootstrap` holds the text of bootstrap.py, collapsed.

    The notebooks of earlier commits have no such cell.
    """
    with _without("jupyter_client", "tornado"):  # of its file manager for a Jupyter server
        import jupytext

    story, bootstrap = SOURCES
    notebook = jupytext.reads(sources[story], fmt="py:percent")
    for cell in notebook.cells:
        if "bootstrap" in cell.metadata.get("tags", []):
            cell.source = sources[bootstrap].rstrip()
            cell.metadata.update(FOLDED)
    return notebook


@contextlib.contextmanager
def _without(*names: str) -> Iterator[None]:
    """Let imports of these modules fail within the block: the libraries that are imported there can do without them.

    Importing them takes longer than rendering a notebook.
    """
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None, as the import system has it
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def _translator() -> Any:  # noqa: ANN401  papermill has no types
    """Return papermill's translator of parameters to Python."""
    with _without("azure", "boto3", "gcsfs", "github", "pyarrow"):  # of its stores, which hold no notebook of ours
        from papermill.translators import PythonTranslator
    return PythonTranslator


def _parameter_cell(notebook: Any) -> Any:  # noqa: ANN401
    return next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))


def parameters(notebook: Any) -> dict[str, str]:  # noqa: ANN401
    """Return the notebook's parameters as papermill reads them: {name: explaining comment}."""
    return {found.name: found.help for found in _translator().inspect(_parameter_cell(notebook))}


def text_parameters(notebook: Any) -> set[str]:  # noqa: ANN401
    """Return the names of the parameters whose default is a text: their values are texts, never numbers or lists."""
    found = _translator().inspect(_parameter_cell(notebook))
    return {each.name for each in found if isinstance(ast.literal_eval(each.default), str)}


def bake(notebook: Any, values: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """Write each value on its own line of the `parameters` cell, set Kaggle's metadata and return the notebook."""
    translator, cell = _translator(), _parameter_cell(notebook)
    lines = []
    for line in cell.source.splitlines():
        name, _, comment = line.partition("  # ")
        name = name.partition(" = ")[0]
        if name not in values:
            lines.append(line)
            continue
        # papermill's own translator, so that the line equals what `papermill -p` writes
        _, _, text = translator.codify({name: values[name]}, "").partition("\n")
        lines += [f"{text.strip()}  # {comment}"] if text.count("\n") == 1 else [f"# {comment}", text.strip()]
    cell.source = "\n".join(lines)
    accelerator = values["accelerator"]
    notebook.metadata = {
        "kaggle": {
            "accelerator": KAGGLE_WORDS[accelerator][0],
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
    """Return the whole run as the text of one cell to paste; Markdown becomes comments."""
    parts = [f"# {about.title}, the whole run as one cell. Made by render.py from notebooks/train.py."]
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append("\n".join(f"# {line}".rstrip() for line in cell.source.splitlines()))
        else:
            parts.append(cell.source)
    return "\n\n".join(parts) + "\n"


def account_file() -> Path:
    """Return the path of the kaggle client's kaggle.json."""
    return Path(os.environ.get("KAGGLE_CONFIG_DIR", Path.home() / ".kaggle")) / "kaggle.json"


def configured_user() -> str:
    """Return the user name in the kaggle client's configuration, empty if unknown; the key is not used."""
    try:
        return str(json.loads(account_file().read_text(encoding="utf-8-sig"))["username"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def write_rendered(folder: Path, about: Module, notebook: Any, kernel: Mapping[str, Any] | None) -> Rendered:  # noqa: ANN401
    """Validate the notebook, write its files and return their paths; each file is written complete or not at all."""
    import nbformat

    nbformat.validate(notebook)
    files = Rendered(
        folder / f"{about.notebook}.ipynb",
        folder / f"{about.notebook}.py",
        folder / "kernel-metadata.json" if kernel else None,
    )
    write_whole(files.notebook, nbformat.writes(notebook).rstrip("\n") + "\n")
    write_whole(files.script, one_cell(notebook, about))
    if files.kernel is not None:
        write_whole(files.kernel, json.dumps(kernel, indent=2) + "\n")
    else:
        # otherwise a notebook for the local sandbox could be pushed with the metadata of an earlier render
        (folder / "kernel-metadata.json").unlink(missing_ok=True)
    return files


def ways_to_kaggle(files: Rendered, user: str) -> str:
    """Return the instructions to upload or push a rendered notebook to Kaggle."""
    unknown = "No Kaggle user is known: set KAGGLE_USERNAME or --kaggle-user before `uv run kaggle kernels push`.\n"
    folder = files.notebook.parent
    return f"{'' if user else unknown}Upload the notebook to Kaggle, or run: uv run kaggle kernels push -p {folder}"


def source(project: Path, *, allow_dirty: bool) -> dict[str, str]:
    """Return the repository and the commit of the checkout `project`, which a run clones.

    Raises `RemoteError` if there is no remote to clone from, and (unless `allow_dirty`) `RenderError` if the commit is
    not on the remote or the working tree differs from it, and `RemoteError` if the commit lacks the address of a DVC
    remote that this machine knows.
    """

    def git(*words: str, timeout: float = MINUTE) -> str:
        return run_command(["git", *words], cwd=project, timeout=timeout, redact=Credentials().redact).output

    try:
        # asked for its top: inside another repository, a folder without one would pass for a checkout
        top, commit = git("rev-parse", "--show-toplevel", "HEAD^{commit}").splitlines()
    except CommandError:
        top = commit = ""
    if not commit or not project.samefile(top):
        raise RenderError(
            f"{project} is no Git checkout with a commit.", remedy="clone the project with Git and render there."
        )
    if len(commit) != SHA1:
        raise RenderError(
            f"{project} is a Git repository with SHA-256 object names, which DVC cannot open.",
            remedy="use a repository with SHA-1 object names (`git init --object-format=sha1`).",
        )
    url = find_git_remote(project)
    if not allow_dirty:
        if changed := git("status", "--porcelain").splitlines():
            raise RenderError(
                f"the tree is dirty, and a run clones the commit: {', '.join(line[3:] for line in changed[:5])}"
                f"{' …' if len(changed) > 5 else ''}.",  # noqa: PLR2004
                remedy="commit and push, or render the commit as it is with --allow-dirty.",
            )
        _require_on_remote(git, commit)
        if note := require_committed(project):
            print(f"Warning: {note}.", flush=True)
    return {"repository": public_url(url), "commit": commit}


def _require_on_remote(git: Callable[..., str], commit: str) -> None:
    try:
        if commit in git("ls-remote", "origin").split():
            return
        git("fetch", "--quiet", "origin", timeout=5 * MINUTE)  # changes only remote-tracking branches
        if git("branch", "--remotes", "--contains", commit, "--list", "origin/*").strip():
            return
    except CommandError as error:
        raise RenderError(
            f"the remote cannot be asked for commit {commit[:12]}: {error.what}",
            remedy="check the network and `git remote -v`, or render without asking with --allow-dirty.",
        ) from None
    raise RenderError(
        f"commit {commit[:12]} is not on the remote, and a run could not clone it.",
        remedy="`git push`, then render again (--allow-dirty renders all the same).",
    )


def execute(notebook: Path, cwd: Path) -> Path:
    """Execute a rendered notebook with papermill, show its output live and return the path of the executed copy.

    On Ctrl-C, interrupts the run and waits for it to end. Raises `RunError` if the run stopped with an error.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    executed = notebook.with_suffix(".executed.ipynb")
    try:
        papermill.execute_notebook(
            str(notebook), str(executed), kernel_name="python3", cwd=str(cwd), progress_bar=False,
            stdout_file=sys.stdout, stderr_file=sys.stderr,
            # hides log messages of the Jupyter kernel itself (no encryption on loopback, an interrupt at its end)
            extra_arguments=["--IPKernelApp.log_level=50"],
            # time for an interrupted run to end its subprocesses and release its lock before its kernel is killed
            config=Config({"KernelManager": {"shutdown_wait_time": GRACE}}),
        )  # fmt: skip
    except PapermillExecutionError as error:
        raise RunError(
            f"the run stopped: {error.ename}: {error.evalue}", remedy=f"everything it printed is in {executed}."
        ) from None
    return executed
