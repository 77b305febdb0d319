"""Read `results.csv`, in which ultralytics records the losses and metrics of each epoch.

Guarantees: only complete lines are read, also while a training writes the file. Requires only the standard library.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping

MAP = "metrics/mAP50-95("
"""The beginning of the mAP50-95 columns; the letter of a head (box, mask, pose) follows."""
Curves = Mapping[str, list[float]]
"""The columns of `results.csv`: one value per epoch."""


def read_curves(text: str) -> Curves:
    """Return the columns of a `results.csv`; empty without a complete epoch.

    Blanks around headers and values are removed. Raises `ValueError` if a complete line does not fit the header.
    """
    whole, _, _ = text.rpartition("\n")  # a last line without its end is still being written
    header, *rows = csv.reader(whole.splitlines()) if whole else [()]
    columns = zip(*([float(cell) for cell in row] for row in rows), strict=True)
    return dict(zip(map(str.strip, header), map(list, columns), strict=True)) if rows else {}


def best_epoch(curves: Curves) -> int:
    """Return the index of the best epoch, selected as by the trainer; the last epoch without any metric.

    The best epoch has the highest mAP50-95, summed over all heads; of equal epochs, it is the later one. Raises
    `ValueError` if there is no epoch.
    """
    if not curves.get("epoch"):
        raise ValueError("there is no complete epoch")
    heads = [column for name, column in curves.items() if name.startswith(MAP)]
    return max(range(len(curves["epoch"])), key=lambda index: (sum(head[index] for head in heads), index))
