"""Foreign text appears as it is in every format, and changes nothing around it."""

from __future__ import annotations

import pytest
from markdown_it import MarkdownIt

from lib.errors import RunError
from lib.escape import code, markdown, visible
from lib.tables import as_text, make_table

NAMES = [
    "a|b", "a\nb", "`code`", "``", "<b>bold</b>", "a*b*c", "_x_", "[link](http://x)", "![i](x)", "&amp;", "\\", "$5$",
    "# x", "~~gone~~", "1|`2|3`", "a`|b",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("show", [markdown, code])
def test_a_cell_of_markdown_shows_a_name_as_it_is(name: str, show: object) -> None:
    """A Markdown parser finds one table with the name as the text of its cell; a line end has become a blank."""
    assert callable(show)
    text = f"| | |\n| --- | --- |\n| Dataset | {show(name)} |\n| Start | random |\n"
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    cells = [token for token in tokens if token.type == "inline"]
    assert len(cells) == 6
    children = cells[3].children or []
    assert {child.type for child in children} <= {"text", "text_special", "code_inline"}
    assert "".join(child.content for child in children) == name.replace("\n", " ")


@pytest.mark.parametrize("text", ["\x1b[2Ja", "a\rb", "a\nb", "a\u202eb", "\u2028", "\udc80"])
def test_a_terminal_gets_no_control_characters(text: str) -> None:
    """In a table, in an error and in a line, controls are shown as escapes; other text is unchanged."""
    for shown in (visible(text), str(RunError(visible(text))), as_text(make_table(("a",), [(visible(text),)]))):
        assert "\\" in shown
    assert visible("Tür 扉 é") == "Tür 扉 é"
    assert "\x1b" not in str(RunError("a\x1b[2J")) + as_text(make_table(("a",), [("\x1b[2J",)]))
