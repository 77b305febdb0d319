"""A failed training has the remedy of its cause."""

from __future__ import annotations

import pytest

from lib.train.failures import find_remedy, is_memory

LOADER = "RuntimeError: DataLoader worker (pid 1234) is killed by signal: "

# What a library raises, and a phrase of its remedy.
CAUSES = {
    f"{LOADER}Bus error. It is possible that dataloader's workers are out of shared memory.": "/dev/shm",
    "RuntimeError: unable to open shared memory object </torch_22_1> in read-write mode: No space left": "/dev/shm",
    "a training process was killed by signal 7": "/dev/shm",
    f"{LOADER}Killed.": "hardware.num_workers",
    "RuntimeError: DataLoader worker (pid(s) 12, 13) exited unexpectedly": "hardware.num_workers",
    "MemoryError: Caught MemoryError in DataLoader worker process 0.": "hardware.num_workers",
    "a training process was killed by signal 9": "hardware.num_workers",
    "OSError: [Errno 24] Too many open files": "open files",
    "RuntimeError: received 0 items of ancdata": "open files",
    "OSError: [Errno 28] No space left on device": "free space",
    "RuntimeError: [enforce fail at inline_container.cc:668] . unexpected pos 1728 vs 1622": "free space",
    "RuntimeError: Training failed: NaN persisted for 4 epochs": "training.learning_rate",
    "RuntimeError: Checkpoint last.pt is corrupted with NaN/Inf weights": "training.learning_rate",
    "RuntimeError: CUDA error: no kernel image is available for execution on the device": "choose GPU T4 x2",
    "RuntimeError: CUDA error: device-side assert triggered": "class number",
    "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:1970": "multi_gpu: false",
    "RuntimeError: CUDA error: unspecified launch failure": "new session",
    "RuntimeError: cuDNN error: CUDNN_STATUS_EXECUTION_FAILED": "new session",
    "RuntimeError: Error(s) in loading state_dict for DetectionModel: size mismatch for x": "model.resume_from",
    "FileNotFoundError: Image Not Found /data/images/a.jpg": "dataset",
    "RuntimeError: Dataset 'data.yaml' error ❌ No valid images found": "dataset",
    "urllib.error.URLError: <urlopen error [Errno -3] Temporary failure in name resolution>": "internet on",
    "ModuleNotFoundError: No module named 'polars'": "uv.lock",
    "a training process was killed by signal 15": "resumes from its last checkpoint",
    "a training process was killed by signal 11": "A library crashed",
    "no batch was finished for 20 minutes (hardware.stall_minutes)": "hardware.stall_minutes",
    "AssertionError: something else": "read the traceback in run.log",
    "a training process ended with status 1": "read the traceback in run.log",
}


@pytest.mark.parametrize("reason", CAUSES)
def test_a_failure_has_the_remedy_of_its_cause(reason: str) -> None:
    """No remedy advises a smaller batch, since none of these causes is lack of memory for a batch."""
    remedy = find_remedy(reason)
    assert CAUSES[reason] in remedy
    assert "batch_size" not in remedy
    assert not is_memory(reason)


@pytest.mark.parametrize(
    "reason",
    [
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB.",
        "RuntimeError: CUDA error: out of memory",
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:75] err == 0. DefaultCPUAllocator: can't allocate memory",
        "RuntimeError: DefaultCPUAllocator: not enough memory: you tried to allocate 12 bytes.",
        "MemoryError: ",
    ],
)
def test_lack_of_memory_is_known(reason: str) -> None:
    """Of a GPU and of the machine: a smaller batch needs less of both."""
    assert is_memory(reason)
