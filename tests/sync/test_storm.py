from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.slow
def test_a_storm_of_kills_and_suspensions_breaks_no_promise() -> None:
    """A small one, on a folder; `storm.py` explains it, and how to run a long one on each store."""
    command = [sys.executable, str(ROOT / "tests/sync/storm.py"), "--store", "folder", "--kills", "12", "--seed", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "12 kills" in ended.stdout
