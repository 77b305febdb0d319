"""Collect the issues that a dataset check finds: a count of each kind, with a few examples.

Guarantees: every issue is counted; the report is in a fixed order. Cannot: list all places: only the first `EXAMPLES`
of each kind are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

SMALLEST = 2
"""Pixels; ultralytics' augmentation drops a box with a side that is not longer than this."""

EXAMPLES = 3


class Issue(Enum):
    """A kind of issue: whether it stops the run, its title in the report, its remedy. Ordered as in the report."""

    DESCRIPTION = True, "keys of data.yaml that cannot be", "correct them as it says"
    SPLIT = (
        True,
        "splits without pictures",
        "name a folder of pictures, several, or a list of their paths, inside of it",
    )
    LISTED = True, "listed pictures that are not in the dataset", "add them, or take them off the list"
    PICTURE = True, "pictures that cannot be read", "replace or remove them: training would leave them out silently"
    LEAK = True, "pictures that are trained on and measured on", "keep each in one split: the metrics would be too good"
    UNLABELLED = True, "splits without any label", "labels stand where ultralytics looks: images/… becomes labels/….txt"
    TEXT = True, "label files that are no text in UTF-8", "write them anew"
    COLUMNS = (
        True,
        "lines with a wrong number of columns",
        "write class, x, y, width, height, and what kpt_shape says; of a polygon class, and x, y of each corner",
    )
    NUMBER = True, "values that are no finite number", "correct the lines"
    CLASS = True, "classes that data.yaml does not name", "use the numbers of names, whole and from 0"
    COORDINATE = True, "coordinates outside of 0 to 1", "divide pixels by the picture's width and height"
    SIDE = True, "boxes without width or height, polygons without area", "remove them, or draw them anew"
    VISIBILITY = True, "visibilities other than 0, 1 and 2", "0 is not labelled, 1 hidden, 2 visible"

    FOREIGN = False, "paths of another machine", "write them relative to data.yaml; they were found as it says"
    REUSED = False, "pictures that are in both val and test", "the test says no more than the validation did"
    REPEATED = False, "pictures that a split holds more than once", "keep one of them"
    TRAILING = (
        False,
        "JPEGs with something behind their end",
        "save them anew: ultralytics writes over them when it trains",
    )
    UNUSED = False, "pictures that are in no split", "remove them, or name their folder in data.yaml"
    ORPHAN = False, "labels without a picture", "add the picture, or remove the label"
    BACKGROUND = False, "splits with many pictures without an object", "see that no label was forgotten"
    ABSENT = False, "classes without an object", "nothing is learnt or measured of them there"
    TWICE = False, "lines that a label holds twice", "remove one; ultralytics does so too"
    SMALL = False, f"boxes of {SMALLEST} pixels or less at training's image_size", "training drops most of them"
    BEYOND = False, "boxes that reach out of the picture", "see that x and y are the box's centre"
    AWAY = False, "keypoints outside of their box", "see that box and keypoints are of one object"
    ORDER = False, "corners in another order", "write top-left, top-right, bottom-right, bottom-left, as the text reads"

    def __init__(self, stops: bool, title: str, remedy: str) -> None:
        self.stops, self.title, self.remedy = stops, title, remedy


@dataclass
class Findings:
    """All issues found, counted by kind, with the first examples of each kind."""

    counts: dict[Issue, int] = field(default_factory=dict)
    examples: dict[Issue, list[str]] = field(default_factory=dict)

    def add(self, kind: Issue, where: str, value: str) -> None:
        """Count one issue and keep it as an example: its place (`file` or `file:line`) and the value found there."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        kept = self.examples.setdefault(kind, [])
        if len(kept) < EXAMPLES:
            kept.append(f"{where}: {value}")

    def lines(self, *, stops: bool) -> list[str]:
        """Return the errors or the warnings as lines of text: a heading per kind, its examples indented below."""
        told = []
        for kind in Issue:
            if kind.stops == stops and kind in self.counts:
                told.append(f"- {kind.title} ({self.counts[kind]}): {kind.remedy}")
                told += [f"    {example}" for example in self.examples[kind]]
                more = self.counts[kind] - len(self.examples[kind])
                told += [f"    and {more} more"] if more else []
        return told

    def count(self, *, stops: bool) -> int:
        """Return the number of errors or of warnings."""
        return sum(count for kind, count in self.counts.items() if kind.stops == stops)
