from __future__ import annotations

from lib.tables import as_text, make_table


def test_a_table_shows_every_cell_in_full() -> None:
    """Brackets are no markup, a long cell is wrapped and not cut, and no line ends in blanks."""
    text = as_text(make_table(("Name", "Value"), [("[bold]a", "x" * 50), ("b", "")], title="Values"), 40)
    assert text.startswith("Values\n")
    assert "[bold]a" in text
    assert text.count("x") == 50
    assert max(map(len, text.splitlines())) <= 40
    assert text == "\n".join(line.rstrip() for line in text.splitlines())
