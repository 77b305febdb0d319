"""The emulated Kaggle passes hours, shares out slots and quota, and ends sessions, as far as Kaggle is known."""

from __future__ import annotations

import base64
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from kaggle_emulator import KEY, USER, WEEK, Act, KaggleEmulator, ProgramSession


@pytest.fixture
def kaggle() -> Iterator[KaggleEmulator]:
    """Return a service whose pushed runs never end by themselves."""
    with KaggleEmulator() as service:
        service.next_run = [Act("RUNNING", "begun\n")]
        service.quota = (0.0, 30.0)
        yield service


def ask(kaggle: KaggleEmulator, method: str, kernel: str, **more: object) -> dict[str, Any]:
    """Send a request about a kernel and return the answer, also that of a refusal."""
    basic = base64.b64encode(f"{USER}:{KEY}".encode()).decode()
    asked = {"userName": USER, "kernelSlug": kernel, **more}
    request = urllib.request.Request(
        f"{kaggle.url}/api/v1/kernels.KernelsApiService/{method}",
        json.dumps(asked).encode(),
        {"Authorization": f"Basic {basic}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            found: dict[str, Any] = json.load(answer)
    except urllib.error.HTTPError as refused:
        found = json.load(refused)
    return found


def push(kaggle: KaggleEmulator, slug: str, *, gpu: bool = True) -> dict[str, Any]:
    """Push a version of a kernel."""
    title = slug.replace("-", " ")
    more = {"isPrivate": True, "enableGpu": gpu, "datasetDataSources": []}
    return ask(kaggle, "SaveKernel", slug, slug=f"{USER}/{slug}", newTitle=title, **more)


def state(kaggle: KaggleEmulator, slug: str, label: str = "") -> str:
    """Return the state of a version."""
    answer = ask(kaggle, "GetKernelSessionStatus", slug, versionLabel=label)
    return str(answer.get("status", answer.get("code")))


def test_versions_run_side_by_side_until_the_slots_are_used(kaggle: KaggleEmulator) -> None:
    """A second version does not stop the first; both count, and a run without GPU does not."""
    assert [push(kaggle, "train-a").get("versionNumber") for _ in range(2)] == [1, 2]
    assert [state(kaggle, "train-a", label) for label in ("v1", "v2", "v3", "1")] == [
        "RUNNING",
        "RUNNING",
        "404",
        "404",
    ]
    assert push(kaggle, "train-b")["error"] == "Maximum batch GPU session count of 2 reached."
    assert push(kaggle, "train-c", gpu=False)["versionNumber"] == 1


def test_a_session_is_killed_at_its_time_limit(kaggle: KaggleEmulator) -> None:
    """Its hours are counted up to the limit, and its slot is free again."""
    push(kaggle, "train-a")
    kaggle.advance(11.5)
    assert state(kaggle, "train-a") == "RUNNING"
    kaggle.advance(2)
    assert (state(kaggle, "train-a"), kaggle.active(), kaggle.quota) == ("ERROR", [], (12.0, 30.0))


def test_the_quota_runs_out_and_is_renewed(kaggle: KaggleEmulator) -> None:
    """A push is refused until the week is over."""
    kaggle.quota = (29.0, 30.0)
    push(kaggle, "train-a")
    kaggle.advance(1)
    assert "weekly GPU quota" in push(kaggle, "train-b")["error"]
    kaggle.advance(WEEK)
    assert push(kaggle, "train-b")["versionNumber"] == 1


def test_deletion_ends_the_sessions_of_a_kernel(kaggle: KaggleEmulator) -> None:
    """Their hours are given back, and the next push makes version 1."""
    push(kaggle, "train-a")
    kaggle.advance(3)
    assert ask(kaggle, "DeleteKernel", "train-a") == {}
    assert (state(kaggle, "train-a"), kaggle.active(), kaggle.quota) == ("403", [], (0.0, 30.0))
    assert push(kaggle, "train-a")["versionNumber"] == 1


@pytest.mark.parametrize("end", ["time limit", "deleted", "by itself"])
def test_a_session_can_be_a_program(kaggle: KaggleEmulator, end: str) -> None:
    """It is killed by the time limit and by deletion, and otherwise ends as it does; its log is what it prints."""
    script = "import time; print('step 1', flush=True); time.sleep(3600)"
    words = [sys.executable, "-c", script if end != "by itself" else "print('step 1'); raise SystemExit(3)"]
    session = ProgramSession(words)
    kaggle.session_of = lambda _: session
    push(kaggle, "train-a")
    while "step 1" not in session.log or (end == "by itself" and not session.is_over):
        time.sleep(0.02)
    if end == "time limit":
        assert not session.is_over
        kaggle.advance(12)
    elif end == "deleted":
        ask(kaggle, "DeleteKernel", "train-a")
    assert session.is_over
    assert session._process.poll() == (3 if end == "by itself" else -9)
    assert session.log == "step 1\n"
