"""Collect the issues that a dataset check finds: a count of each kind, with a few examples.

Guarantees: every issue is counted; the report is in a fixed order. Cannot: list all places: only the first `EXAMPLES`
of each kind are kept.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum

from lib.escape import visible

SMALLEST = 2
"""Pixels; ultralytics' augmentation drops a box with a side that is not longer than this."""

EXAMPLES = 3


class Issue(Enum):
    """A kind of issue: whether it stops the run, its title in the report, its remedy. Ordered as in the report."""

    DESCRIPTION = True, "invalid keys of data.yaml", "correct each as described"
    SPLIT = True, "splits without images", "name a folder of images in the dataset, several, or a list of their paths"
    LISTED = True, "listed images that are not in the dataset", "add them, or remove them from the list"
    IMAGE = (
        True,
        "images that cannot be read",
        "remove them, or save them again as JPEG or PNG: training would leave them out silently, or fail",
    )
    LEAK = True, "images that are trained on and measured on", "keep each in one split: the metrics would be too good"
    UNLABELLED = True, "splits without any label", "put labels where ultralytics looks: images/… becomes labels/….txt"
    TEXT = True, "label files that are not UTF-8 text", "write them again"
    COLUMNS = (
        True,
        "lines with a wrong number of columns",
        "write class, x, y, width, height, and the keypoints of kpt_shape; polygons are for segmentation alone",
    )
    NUMBER = True, "values that are not finite numbers", "correct the lines"
    CLASS = True, "classes that data.yaml does not name", "use the numbers of names, which are whole and start at 0"
    COORDINATE = (
        True,
        "coordinates outside of 0 to 1",
        "divide pixels by the image's size, and clip at its edge",
    )
    SIDE = True, "boxes without width or height, polygons without area", "remove them, or draw them again"
    VISIBILITY = True, "visibilities other than 0, 1 and 2", "0 is not labelled, 1 hidden, 2 visible"

    FOREIGN = False, "paths of another machine", "write them relative to data.yaml; the files were found as shown"
    REUSED = False, "images that are in both val and test", "the test adds nothing to the validation there"
    REPEATED = False, "images that a split holds more than once", "keep one of them"
    SHARED = False, "images that share a label", "rename one of them and its label: each is trained with these objects"
    TRAILING = False, "JPEGs with bytes after their end", "save them again: ultralytics rewrites them when it trains"
    UNUSED = False, "images that are in no split", "remove them, or name their folder in data.yaml"
    ORPHAN = False, "labels without an image", "add the image, or remove the label"
    BACKGROUND = False, "splits with many images without an object", "check that no label was forgotten"
    ABSENT = False, "classes without an object", "nothing is learnt or measured of them there"
    TWICE = False, "lines that a label holds twice", "remove one; ultralytics does so too"
    SMALL = False, f"boxes of {SMALLEST} pixels or less at training's image_size", "training drops most of them"
    BEYOND = False, "boxes that exceed the image", "check that x and y are the box's centre"
    AWAY = False, "keypoints outside of their box", "check that box and keypoints belong to one object"
    ORDER = False, "corners in another order", "write top-left, top-right, bottom-right, bottom-left, as the text reads"

    def __init__(self, stops: bool, title: str, remedy: str) -> None:
        self.stops, self.title, self.remedy = stops, title, remedy


@dataclass
class Findings:
    """All issues found, counted by kind, with the first examples of each kind."""

    counts: Counter[Issue] = field(default_factory=Counter)
    examples: dict[Issue, list[str]] = field(default_factory=dict)

    def add(self, kind: Issue, where: str, value: str) -> None:
        """Count one issue and keep it as an example: its place (`file` or `file:line`) and the value found there."""
        self.counts[kind] += 1
        if self.counts[kind] <= EXAMPLES:
            self.examples.setdefault(kind, []).append(visible(f"{where}: {value}"))

    def lines(self, *, stops: bool) -> list[str]:
        """Return the errors or the warnings as lines of text: a heading per kind, its examples indented below."""
        lines = []
        for kind in Issue:
            if kind.stops == stops and kind in self.counts:
                lines.append(f"- {kind.title} ({self.counts[kind]}): {kind.remedy}")
                lines += [f"    {example}" for example in self.examples[kind]]
                more = self.counts[kind] - len(self.examples[kind])
                lines += [f"    and {more} more"] if more else []
        return lines

    def count(self, *, stops: bool) -> int:
        """Return the number of errors or of warnings."""
        return sum(count for kind, count in self.counts.items() if kind.stops == stops)
