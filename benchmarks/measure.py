"""Compare two sides of a benchmark in turns, and report medians and intervals as text, JSON and a plot.

A benchmark measures its cases with `compare` and passes them to `report`, which prints them and writes
`results/<script>.json` and `.png`. `python benchmarks/measure.py` generates the tables of `README.md` from these files.
"""

from __future__ import annotations

import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results"
RESAMPLINGS = 10_000
OTHER = "#9aa5b1"
OURS = "#1f6feb"


@dataclass(frozen=True)
class Case:
    """One comparison: the seconds (or requests, bytes …) of both sides, one value per turn."""

    name: str
    ours: Sequence[float]
    other: Sequence[float]
    reach: float | None = None
    """The highest acceptable ratio; None if there is no limit."""
    unit: str = "s"
    notes: Mapping[str, float] = field(default_factory=dict)
    """Additional figures, by name."""

    @property
    def ratio(self) -> float:
        """Our median divided by the other side's."""
        return statistics.median(self.ours) / statistics.median(self.other)

    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of the ratio, from a bootstrap over the turns with a fixed seed."""
        generator, turns = random.Random(0), range(len(self.ours))
        ratios = []
        for _ in range(RESAMPLINGS):
            drawn = [generator.choice(turns) for _ in turns]
            ours, other = (statistics.median(side[turn] for turn in drawn) for side in (self.ours, self.other))
            ratios.append(ours / other)
        ratios.sort()
        return ratios[int(0.025 * RESAMPLINGS)], ratios[int(0.975 * RESAMPLINGS)]

    def line(self) -> str:
        """Return the printed text of the case: its ratio, and the figures below it."""
        low, high = self.interval()
        ours, other = (statistics.median(side) for side in (self.ours, self.other))
        kept = "" if self.reach is None else f"; reach {self.reach:g}: {'kept' if self.is_kept else 'MISSED'}"
        turns = f"{ours:.3f} against {other:.3f} {self.unit}, {len(self.ours)} turns"
        return f"{self.name} ratio {self.ratio:.3f}\n    95 % {low:.3f} to {high:.3f}; {turns}{kept}"

    @property
    def is_kept(self) -> bool:
        """Whether the ratio is within its reach."""
        return self.reach is None or self.ratio <= self.reach


def compare(
    name: str, ours: Callable[[], float], other: Callable[[], float], *, turns: int, reach: float | None = None
) -> Case:
    """Run both sides in turns, each first equally often, and return their values."""
    values: dict[str, list[float]] = {"ours": [], "other": []}
    for turn in range(turns):
        sides = [("ours", ours), ("other", other)]
        for side, run in sides if turn % 2 == 0 else sides[::-1]:
            values[side].append(run())
        print(f"  {name}, turn {turn + 1} of {turns}: {values['ours'][-1]:.2f} against {values['other'][-1]:.2f}")
    return Case(name, values["ours"], values["other"], reach)


def seconds_of(
    *commands: Sequence[object], cwd: Path, env: Mapping[str, str] | None = None, text: str | None = None
) -> float:
    """Run commands one after the other as whole processes, and return their total seconds.

    Raise `SystemExit` with the output of a command that fails: a failure must not count as fast.
    """
    started = time.perf_counter()
    for command in commands:
        completed = subprocess.run(
            [str(argument) for argument in command], cwd=cwd, env={**os.environ, **(env or {})}, input=text,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if completed.returncode:
            raise SystemExit(f"{' '.join(map(str, command))}\n{completed.stdout[-2000:]}\n{completed.stderr[-4000:]}")
    return time.perf_counter() - started


def machine() -> str:
    """Return a description of this machine."""
    cpu = next(
        (line.partition(":")[2].strip() for line in _read("/proc/cpuinfo") if line.startswith("model name")), "?"
    )
    return f"{os.cpu_count()} cores, {cpu}, {platform.system()}, Python {platform.python_version()}"


def _read(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def report(script: str, cases: Sequence[Case], question: str) -> None:
    """Print each case, and write the results of `script` as JSON and as a plot."""
    print(f"\n{question}")
    for case in cases:
        print(case.line())
        for name, value in case.notes.items():
            print(f"    {name}: {value:g}")
    RESULTS.mkdir(exist_ok=True)
    content = {
        "question": question,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": machine(),
        "command": " ".join(["uv run python", f"benchmarks/{script}.py", *sys.argv[1:]]),
        "cases": [
            {**asdict(case), "ratio": case.ratio, "interval": case.interval(), "kept": case.is_kept} for case in cases
        ],
    }
    (RESULTS / f"{script}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    _draw(RESULTS / f"{script}.png", cases, question)


def _draw(file: Path, cases: Sequence[Case], question: str) -> None:
    """Plot both sides of each case, one point per turn and a bar for the median, on a logarithmic axis."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.55 * len(cases)), layout="constrained")
    for row, case in enumerate(reversed(cases)):
        for side, colour, offset in ((case.other, OTHER, 0.13), (case.ours, OURS, -0.13)):
            axes.barh(row + offset, statistics.median(side), height=0.24, color=colour, alpha=0.55)
            axes.plot(side, [row + offset] * len(side), ".", color=colour, markersize=5)
    axes.set_yticks(range(len(cases)), [f"{case.name}\nratio {case.ratio:.2f}" for case in reversed(cases)])
    axes.set_xscale("log")
    axes.set_xlabel(f"{', '.join(sorted({case.unit for case in cases}))} (blue: ours, grey: the other side)")
    axes.set_title(question, fontsize=10, loc="left")
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def tables() -> str:
    """Return all results as Markdown, one table per script."""
    parts = []
    for file in sorted(RESULTS.glob("*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        rows = ["| case | ours | other side | ratio | 95 % | reach |", "| --- | --- | --- | --- | --- | --- |"]
        for case in result["cases"]:
            ours, other = (f"{statistics.median(case[side]):.3g} {case['unit']}" for side in ("ours", "other"))
            low, high = case["interval"]
            reach = "" if case["reach"] is None else f"{case['reach']:.3g}{'' if case['kept'] else ', missed'}"
            name = case["name"] + "".join(f"; {key}: {value:g}" for key, value in case["notes"].items())
            rows.append(f"| {name} | {ours} | {other} | {case['ratio']:.2f} | {low:.2f} to {high:.2f} | {reach} |")
        parts.append(
            f"### `{file.stem}.py`\n\n{result['question']}\n\n"
            f"{result['date']}, {result['machine']}. To repeat: `{result['command']}`.\n\n"
            + "\n".join(rows)
            + f"\n\n![{file.stem}](results/{file.stem}.png)\n"
        )
    return "\n".join(parts)


def write_tables(readme: Path) -> None:
    """Replace the tables below the heading `## Results` of a README."""
    text = readme.read_text(encoding="utf-8")
    before = re.split(r"^## Results$", text, maxsplit=1, flags=re.MULTILINE)[0]
    readme.write_text(f"{before}## Results\n\n{tables()}", encoding="utf-8")


if __name__ == "__main__":
    write_tables(HERE / "README.md")
    sys.exit(0)
