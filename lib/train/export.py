"""Export the best weights to the formats in the experiment's `export`: `train/weights/best.onnx`, `best.torchscript`.

Guarantees: a returned file predicts the same as `best.pt` on the CPU, to within rounding; it is complete or absent.
Each export runs in a subprocess: any failure, including a crash or a hang, is reported, and the weights are published
anyway.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.errors import CommandError, ExportError
from lib.process import MINUTE, found_from, run_command
from lib.progress import file_size
from lib.session import Session
from lib.train.launch import Trained

TIMEOUT = 10 * MINUTE  # per format; a large model at 1280 px takes less than one minute
RELATIVE, ABSOLUTE = 1e-3, 1e-2  # tolerances for pixels and scores; both exporters stay a hundred times below


@dataclass(frozen=True)
class Exported:
    """The exported models, and the error if a requested one is missing."""

    files: tuple[Path, ...] = ()
    missing: ExportError | None = None
    """The error to raise after everything else is saved."""


def export(session: Session, trained: Trained) -> Exported:
    """Export `best.pt` into its own folder in each requested format; return failures as `missing`."""
    files, failed, image_size = [], [], str(session.experiment.training.image_size)
    for form in session.experiment.export:
        target = trained.best.with_suffix(f".{form}")
        target.unlink(missing_ok=True)  # a file of an earlier call belongs to other weights
        try:
            with tempfile.TemporaryDirectory(prefix="kaggle-training-") as scratch:
                copy = shutil.copy(trained.best, scratch)
                command = [sys.executable, "-m", "lib.train.export", copy, form, image_size]
                run_command(command, cwd=Path(scratch), env=found_from(session.root), timeout=TIMEOUT)
                shutil.move(Path(scratch) / target.name, target)
            print(f"Exported: {target.name}, {file_size(target.stat().st_size)}; it predicts what best.pt does.")
            files.append(target)
        except (CommandError, OSError) as error:
            cause = error.what if isinstance(error, CommandError) else str(error)
            print(f"Warning: exporting to {form} failed: {cause}", flush=True)
            failed.append(f"{form} ({cause.strip().splitlines()[-1]})")
    missing = ExportError(
        f"the weights could not be exported to {', '.join(failed)}",
        state=f"the weights themselves are in {trained.best.parent}.",
        remedy="read the log above the error; they can be exported again with `yolo export`.",
    )
    return Exported(tuple(files), missing if failed else None)


def main(weights: str, form: str, image_size: str) -> None:
    """Export the weights and verify the result: the entry point of the export subprocess."""
    from ultralytics.models import YOLO

    made = YOLO(weights).export(format=form, imgsz=int(image_size), device="cpu")
    check_same(weights, str(made), int(image_size))


def check_same(weights: str, made: str, image_size: int) -> None:
    """Raise `SystemExit` if two models return different predictions for the same image."""
    import torch
    from ultralytics.nn.autobackend import AutoBackend
    from ultralytics.nn.tasks import load_checkpoint

    channels = int(load_checkpoint(weights)[0].yaml.get("channels", 3))  # 1 for grey images, more for several bands
    noise = torch.rand(1, channels, image_size, image_size, generator=torch.Generator().manual_seed(0))

    def ask(file: str) -> torch.Tensor:
        answer: Any = AutoBackend(file, device=torch.device("cpu"), verbose=False).eval()(noise)
        found: torch.Tensor = answer[0] if isinstance(answer, list | tuple) else answer
        return found

    wanted, given = ask(weights), ask(made)
    if given.shape != wanted.shape or not torch.allclose(given, wanted, rtol=RELATIVE, atol=ABSOLUTE):
        raise SystemExit("what was exported predicts something else than best.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
