"""Benchmarks start, say their lines as they must, and their page is made from their results alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

BENCHMARKS = ROOT / "benchmarks"
sys.path.append(str(BENCHMARKS))

import measure  # noqa: E402
from measure import Case  # noqa: E402

SCRIPTS = sorted(
    path.name for path in BENCHMARKS.glob("*.py") if path.name not in {"measure.py", "many.py", "timed_trainer.py"}
)


def test_a_case_is_one_line_with_its_ratio() -> None:
    """The ratio is that of the medians; its interval holds it; a reach that is missed is said."""
    case = Case("directory", [1.0, 1.2, 1.1], [2.0, 2.2, 2.1], 0.5)
    low, high = case.interval()
    assert case.line().splitlines()[0] == "directory ratio 0.524"
    assert low <= case.ratio <= high
    assert "reach 0.5: MISSED" in case.line()
    assert "kept" in Case("directory", [1.0], [2.0], 0.5).line()


def test_both_sides_run_in_turns_and_each_is_first_as_often() -> None:
    """What the machine does meanwhile hits both."""
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return 1.0

    case = measure.compare("x", lambda: side("ours"), lambda: side("other"), turns=4)
    assert order == ["ours", "other", "other", "ours"] * 2
    assert (len(case.ours), len(case.other)) == (4, 4)


def test_a_process_that_fails_is_not_taken_for_a_fast_one() -> None:
    """The benchmark ends with what it said."""
    with pytest.raises(SystemExit, match="broken"):
        measure.seconds_of([sys.executable, "-c", "raise SystemExit('broken')"], cwd=ROOT)


def test_results_become_a_table_and_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No figure of the page is typed by hand; what stood there before is replaced."""
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    measure.report("some", [Case("a", [1.0, 1.0], [2.0, 2.0], 0.4), Case("b", [3.0], [3.0], unit="requests")], "Why?")
    told = json.loads((tmp_path / "some.json").read_text())
    assert [case["ratio"] for case in told["cases"]] == [0.5, 1.0]
    assert (tmp_path / "some.png").read_bytes().startswith(b"\x89PNG")
    page = tmp_path / "README.md"
    page.write_text("# Page\n\n## Results\n\nold\n")
    measure.write_tables(page)
    text = page.read_text()
    assert text.startswith("# Page\n\n## Results\n")
    assert "| a | 1 s | 2 s | 0.50 | 0.50 to 0.50 | 0.4, missed |" in text
    assert "old" not in text


def test_the_page_names_every_script() -> None:
    """And none that is not there."""
    page = (BENCHMARKS / "README.md").read_text(encoding="utf-8").partition("## Results")[0]
    assert sorted(re.findall(r"^\| `([\w.]+)` \|", page, re.MULTILINE)) == SCRIPTS


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_starts_and_says_how_it_is_run(script: str) -> None:
    """Its first lines, and its options."""
    done = subprocess.run([sys.executable, BENCHMARKS / script, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--turns" in done.stdout
