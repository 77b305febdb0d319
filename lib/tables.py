"""Show tables as plain text, for a terminal, a log or a notebook.

Guarantees: a cell is shown in full, its control characters as escapes, wrapped where the table is too wide; the text
has no colours, because a Kaggle log shows none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import StringIO

from rich.box import HEAVY_HEAD
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from lib.escape import visible

WIDTH = 200  # characters; a notebook and a log have no width of their own


def make_table(headers: Iterable[str], rows: Iterable[Sequence[str]], *, title: str = "", ruled: bool = True) -> Table:
    """Return a table for rich's live display; with `ruled`, its cells are separated by lines."""
    table = Table(
        *(Column(header, overflow="fold") for header in headers), title=title or None, title_justify="left",
        box=HEAVY_HEAD if ruled else None, pad_edge=ruled,
    )  # fmt: skip
    for row in rows:
        # not as markup: a cell may hold [brackets]
        table.add_row(*(Text("\n".join(map(visible, cell.split("\n")))) for cell in row))
    return table


def as_text(table: Table, width: int = WIDTH) -> str:
    """Return a table as lines of text without trailing blanks."""
    text = StringIO()
    Console(file=text, width=width, force_terminal=False, force_jupyter=False).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())
