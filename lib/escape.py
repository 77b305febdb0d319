r"""Write foreign text (class names, file names, errors) into a format in which some characters have a meaning.

Guarantees: one function per format; the text is readable there, stays where it was put, and neither ends a line or a
cell nor starts markup. `visible` is for a terminal or a log, `markdown` for running text and a table's cell, `code` for
a code span of both, `plot` for a text of matplotlib.
"""

from __future__ import annotations

import re
import unicodedata

CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""What moves a terminal's cursor or sets its colours: left out where no terminal reads it."""


def visible(text: object) -> str:
    r"""Return a text on one line, with every control character but tabs as its escape, such as `\x1b` or `\n`."""
    hidden = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # controls, formats (which reorder text), halves of pairs, line ends
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in hidden and c != "\t" else c for c in str(text)
    )


def markdown(text: object) -> str:
    """Return a text that Markdown shows as it is, also in a table's cell; line ends become blanks."""
    marked = re.sub(r"([\\`*_\[\]|~$#!])", r"\\\1", visible(" ".join(str(text).split())))
    return marked.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def code(text: object) -> str:
    """Return a text as a code span of Markdown, also in a table's cell."""
    shown = visible(" ".join(str(text).split())).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    return f"{fence} {shown} {fence}" if len(fence) > 1 else f"`{shown}`"


def plot(text: object) -> str:
    """Return a text for matplotlib, which hides what starts with `_` from a legend; `text.parse_math` must be off."""
    shown = visible(text)
    return f" {shown}" if shown.startswith("_") else shown
