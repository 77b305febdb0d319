"""Which GPUs a run takes for its own; the driver is a program that answers as nvidia-smi does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lib.errors import HostError
from lib.kaggle.host import Gpu, find_gpus

T4, L4 = Gpu("Tesla T4", 15360), Gpu("NVIDIA L4", 23034)
ROWS = "0, GPU-aa, Tesla T4, 15360\n1, GPU-bb, NVIDIA L4, 23034\n2, GPU-cc, Tesla T4, 15360\n"


@pytest.fixture(autouse=True)
def _driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    wanted = "--query-gpu=index,uuid,name,memory.total --format=csv,noheader,nounits"
    program.write_text(f'#!/bin/sh\ntest "$*" = "{wanted}" && printf "{ROWS}"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path), os.environ["PATH"]]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        (None, (T4, L4, T4)),
        ("1", (L4,)),
        ("2,1", (T4, L4)),
        ("GPU-bb, GPU-aa", (L4, T4)),
        ("GPU-b", (L4,)),  # CUDA takes the beginning of a UUID
        ("", ()),
        ("-1", ()),
        ("0,7,1", (T4,)),  # CUDA takes those before the first that is not there
    ],
)
def test_a_run_takes_the_gpus_that_it_was_given(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, found: tuple[Gpu, ...]
) -> None:
    """An engine assigns GPUs to each run by the environment."""
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert find_gpus() == found


@pytest.mark.parametrize("visible", ["MIG-aa", "GPU-zz"])
def test_a_gpu_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    """Without it the run would train on the CPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(HostError, match=f"CUDA_VISIBLE_DEVICES is '{visible}'"):
        find_gpus()
