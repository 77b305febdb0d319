"""What a dataset's check finds, counted by kind, with a few examples of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

SMALLEST = 2
"""Pixels: ultralytics' augmentation drops what is not larger than this on a side."""

EXAMPLES = 3


class Kind(Enum):
    """What can be wrong: whether it stops the run, what it is called, what to do. In the report's order."""

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
    """Everything that was found, counted by kind, with the first examples of each."""

    counts: dict[Kind, int] = field(default_factory=dict)
    examples: dict[Kind, list[str]] = field(default_factory=dict)

    def add(self, kind: Kind, where: str, value: str) -> None:
        """Note one thing: where it is, as `file` or `file:line`, and what stands there."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        kept = self.examples.setdefault(kind, [])
        if len(kept) < EXAMPLES:
            kept.append(f"{where}: {value}")

    def lines(self, *, stops: bool) -> list[str]:
        """Give the errors or the warnings as lines of text: a heading a kind, its examples indented below."""
        told = []
        for kind in Kind:
            if kind.stops == stops and kind in self.counts:
                told.append(f"- {kind.title} ({self.counts[kind]}): {kind.remedy}")
                told += [f"    {example}" for example in self.examples[kind]]
                more = self.counts[kind] - len(self.examples[kind])
                told += [f"    and {more} more"] if more else []
        return told

    def count(self, *, stops: bool) -> int:
        """Give the number of errors or of warnings."""
        return sum(count for kind, count in self.counts.items() if kind.stops == stops)
