"""Keep ultralytics' plots from failing what they illustrate.

Guarantees: inside `guarded_plots`, a plot that fails costs that plot alone and is named; every text is drawn as it is
(matplotlib reads `$` as the start of a formula, and hides what starts with `_` from a legend); a plot is complete when
its call returns. Cannot: draw characters that no font of the machine has.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from copy import copy
from pathlib import Path
from types import ModuleType
from typing import Any

from lib import escape
from lib.escape import visible

TITLES = {"plot": "the confusion matrix", "plot_labels": "labels.jpg", "plot_results": "results.png"}
"""The plots whose functions get the name of no image."""


def print_warning(what: str, error: str) -> None:
    """Print that a plot failed."""
    print(f"Warning: {what} failed: {visible(error)}", flush=True)


@contextlib.contextmanager
def guarded_plots(warn: Callable[[str, str], object] = print_warning) -> Iterator[None]:
    """Guard every plot of ultralytics in the block; call `warn` with the name and the error of each that fails."""
    import matplotlib as mpl
    from ultralytics.models import yolo  # noqa: F401  the modules that draw are loaded now
    from ultralytics.utils.metrics import ConfusionMatrix

    places = [(module, name) for module in _modules() for name in vars(module) if name.startswith("plot_")]
    with contextlib.ExitStack() as stack:
        stack.enter_context(mpl.rc_context({"text.parse_math": False}))
        for owner, name in [*places, (ConfusionMatrix, "plot")]:
            plot = getattr(owner, name)
            stack.callback(setattr, owner, name, plot)
            setattr(owner, name, _guard(name, plot, warn))
        yield


def _modules() -> list[ModuleType]:
    return [module for name, module in list(sys.modules.items()) if name.startswith("ultralytics.") and module]


def _guard(name: str, plot: Any, warn: Callable[[str, str], object]) -> Callable[..., None]:  # noqa: ANN401  untyped
    if name in {"plot_labels", "plot"}:
        plot = plot.__wrapped__  # without the library's own guard, which does not name the plot

    @functools.wraps(plot)
    def guarded(*args: Any, **given: Any) -> None:  # noqa: ANN401
        if name == "plot_images":
            given["threaded"] = False  # a thread's error would reach nobody, and its file be read half-written
        try:
            plot(*map(_shown, args), **{key: _shown(value) for key, value in given.items()})
        except Exception as error:  # noqa: BLE001  a plot must not cost what it shows
            files = [Path(value).name for value in (*args, *given.values()) if isinstance(value, str | Path)]
            what = next((file for file in files if "." in file), TITLES.get(name, name))
            warn(f"drawing {what}", f"{type(error).__name__}: {error}")

    return guarded


def _shown(value: Any) -> Any:  # noqa: ANN401
    """Return class names by number, or a matrix with its own, as matplotlib draws them; any other value unchanged."""
    if isinstance(getattr(value, "names", None), dict):
        value = copy(value)
        value.names = _shown(value.names)
    if isinstance(value, dict) and value and all(isinstance(name, str) for name in value.values()):
        return {number: escape.plot(name) for number, name in value.items()}
    return value
