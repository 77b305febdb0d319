from __future__ import annotations

from pathlib import Path

import pytest

from lib.files import replacing, write_whole


def test_a_failed_write_leaves_the_earlier_file(tmp_path: Path) -> None:
    """The folder then holds the earlier file with its content, and no temporary file."""
    file = tmp_path / "new folder/a.txt"
    write_whole(file, "first\n")
    with pytest.raises(UnicodeEncodeError):
        write_whole(file, "half of the text \ud800")
    assert file.read_text() == "first\n"
    assert list(file.parent.iterdir()) == [file]


def test_a_temporary_file_of_a_killed_process_is_replaced(tmp_path: Path) -> None:
    """A later write neither fails nor appends to it."""
    file = tmp_path / "a.txt"
    (tmp_path / ".a.txt.part").write_text("left")
    with replacing(file) as part:
        assert not part.exists()
        part.write_text("whole")
    assert file.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [file]
