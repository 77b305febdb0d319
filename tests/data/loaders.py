"""Batches of ultralytics' own loader: in this process, or in one rank of a group of two processes.

`python loaders.py RANK STORE CASES` is a rank: CASES is JSON, a list of arguments of `compare`. It prints what they
returned, as JSON.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

SIDE = 64  # pixels; the experiments' image_size
RANKS = 2
WAIT = timedelta(minutes=2)


def batches(file: str, task: str, split: str, mosaic: float, rank: int = -1) -> list[dict[str, Any]]:
    """Return two epochs of batches, as the library's trainer would get them on that rank."""
    import numpy as np
    import torch
    from ultralytics.cfg import get_cfg
    from ultralytics.data import build_dataloader, build_yolo_dataset
    from ultralytics.data.utils import check_det_dataset
    from ultralytics.utils.torch_utils import torch_distributed_zero_first

    random.seed(1)
    np.random.seed(1)  # noqa: NPY002  what the library uses
    torch.manual_seed(1)
    about = check_det_dataset(file)
    given = {"task": task, "imgsz": SIDE, "mosaic": mosaic, "degrees": 10, "deterministic": True}
    settings: Any = get_cfg(overrides=given)
    mode = "train" if split == "train" else "val"
    with torch_distributed_zero_first(rank):
        built = build_yolo_dataset(settings, about[split], 4, about, mode=mode, rect=mode == "val")
    loader = build_dataloader(built, 4, 0, shuffle=mode == "train", rank=rank)
    return [batch for _ in range(2) for batch in loader]


def compare(files: tuple[str, str], task: str, split: str, mosaic: float, rank: int = -1) -> list[str]:
    """Check that both `data.yaml` give the same batches; return the names of the images, in their order."""
    import torch

    names = []
    for ours, theirs in zip(*(batches(file, task, split, mosaic, rank) for file in files), strict=True):
        tensors = {key for key, value in theirs.items() if isinstance(value, torch.Tensor)}
        assert {"img", "cls", "bboxes", "batch_idx"} <= tensors
        assert all(torch.equal(ours[key], theirs[key]) for key in tensors)
        assert [Path(name).name for name in ours["im_file"]] == [Path(name).name for name in theirs["im_file"]]
        assert list(map(tuple, ours["resized_shape"])) == list(map(tuple, theirs["resized_shape"]))
        names += [Path(name).name for name in theirs["im_file"]]
    return names


def compare_on_ranks(folder: Path, cases: list[Any]) -> list[list[list[str]]]:
    """Return for each rank what `compare` returned for each case; the ranks are processes of one group."""
    command = [sys.executable, __file__]
    ranks = [
        subprocess.Popen([*command, str(rank), str(folder / "group"), json.dumps(cases)], stdout=subprocess.PIPE)
        for rank in range(RANKS)
    ]
    outputs = [rank.communicate()[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * RANKS
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def main(rank: int, store: str, cases: list[Any]) -> None:
    """Join the group as a rank and print the names of its images in each case."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS, timeout=WAIT)
    print(json.dumps([compare(files, task, split, mosaic, rank) for files, task, split, mosaic in cases]))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]))
