"""Name the remedy for a failed training by its cause.

Guarantees: `REMEDIES` is the only table of remedies; its rows match whole phrases of the libraries, and the first row
that matches counts. A smaller batch is advised for nothing but lack of memory. A cause that no row matches has the
remedy of reading the traceback. Cannot: find the cause of an error that a library reports in words of another one.
"""

from __future__ import annotations

import re

AGAIN = "start a new session: training resumes from its last checkpoint"
PROCESSES = "reduce hardware.num_workers (0 loads images in the training process itself)"

MEMORY = re.compile(
    r"out of memory|OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|not enough memory: you tried"
    r"|can't allocate memory|Cannot allocate memory|^MemoryError|Unable to allocate [\d.]+ .iB",
    re.IGNORECASE,
)
"""The phrases for lack of memory, of a GPU or of the machine, that a smaller batch may cure."""

REMEDIES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        f"{PROCESSES}: its processes share images in /dev/shm, which is full.",
        (r"signal: Bus error", r"signal 7\b", "insufficient shared memory", "shared memory (object|file)", "to mmap"),
    ),
    (
        f"{PROCESSES}: the machine's memory is full, and each of its processes needs some.",
        (
            "DataLoader worker .* (exited unexpectedly|is killed by signal)", r"killed by signal 9\b",
            "Insufficient memory", "MemoryError in DataLoader worker",
        ),
    ),
    (
        f"{PROCESSES}: the system allows no more open files or processes.",
        ("Too many open files", r"received \d+ items of ancdata", "can't start new thread"),
    ),
    (
        "free space in the working and the scratch folder; `python -m lib preflight` shows how much is needed.",
        (
            "No space left on device", "Disk quota exceeded", "PytorchStreamWriter failed", r"unexpected pos \d+ vs",
            "fail at inline_container",
        ),
    ),
    (
        "run where the named file can be written: Kaggle's folder for results is /kaggle/working.",
        ("Read-only file system", "Permission denied"),
    ),
    (
        "reduce training.learning_rate, raise training.warmup_epochs, or set hardware.mixed_precision: false.",
        (r"\bNaNs?\b", r"\bnan or inf\b", "non-finite"),
    ),
    (
        "choose GPU T4 x2 in the notebook's settings: this torch has no kernels for the GPU.",
        ("no kernel image is available", "is not compatible with the current PyTorch installation"),
    ),
    (
        "check that every class number of the labels is below the number of classes in data.yaml.",
        ("device-side assert", "index out of bounds", r"Target \S+ is out of bounds", "exceeds dataset class count"),
    ),
    (
        "run again, or set hardware.multi_gpu: false: the processes of several GPUs lost each other.",
        (
            "NCCL", "(?i:gloo)", "ProcessGroup", "TCPStore", "EADDRINUSE", "Address already in use",
            "Connection (reset|closed) by peer",
        ),
    ),
    (
        f"{AGAIN}. The GPU failed, and this process cannot use it again.",
        (
            "CUDA error", "cuDNN error", "CUDNN_STATUS", "CUBLAS_STATUS", "CUFFT", "CUDA driver", "No CUDA GPUs",
            "NVIDIA driver", "Invalid CUDA .device=",
        ),
    ),
    (
        "check model.pretrained and model.resume_from: `python -m lib preflight` reads these files.",
        (
            "size mismatch for", "in loading state_dict", "PytorchStreamReader", "UnpicklingError", "invalid load key",
            "not a loadable checkpoint", "TorchScript archive", "match the size of optimizer",
            "different number of parameter groups",
        ),
    ),
    (
        "correct the dataset: look at the named file in a clone, then `dvc add`, `dvc push`, commit and render again.",
        (
            "Image Not Found", "cannot identify image file", "image file is truncated", "No (valid )?images found",
            "No labels found", "Dataset .* error", "Error loading data from", r"cv2\.error", r"^error: OpenCV",
            "broken data stream", "kpt_shape", "flip_idx",
        ),
    ),
    (
        "turn internet on in the notebook's settings and run again: the library downloads a file.",
        (
            "URLError", "HTTPError", r"ConnectionError", "Name or service not known", "failure in name resolution",
            "Max retries", "Network is unreachable", "Download failure", "ConnectTimeout", "ReadTimeout",
        ),
    ),
    (
        "start a new session and run from step 0: the installed packages are not those of uv.lock.",
        ("ModuleNotFoundError", "ImportError", "undefined symbol", "cannot open shared object file", "size changed"),
    ),
    (f"{AGAIN}. The process was ended from outside.", (r"killed by signal (2|15)\b",)),
    (f"{AGAIN}. A library crashed; if that is repeated, set hardware.num_workers: 0.", (r"killed by signal \d",)),
    (
        "raise hardware.stall_minutes if a batch may take that long, or set hardware.num_workers: 0.",
        ("no batch was finished for",),
    ),
    ("read the traceback in run.log, above this error.", ("",)),
)  # fmt: skip
"""Pairs of a remedy and the phrases of its causes; the last row matches everything."""


def find_remedy(reason: str) -> str:
    """Return the remedy of the first row of `REMEDIES` of which a phrase occurs in the reason of a failure."""
    return next(remedy for remedy, phrases in REMEDIES if re.search("|".join(phrases), reason))


def is_memory(reason: str) -> bool:
    """Return whether training failed for lack of memory that a smaller batch would not need."""
    return bool(MEMORY.search(reason)) and not re.search("DataLoader worker|shared memory", reason)
