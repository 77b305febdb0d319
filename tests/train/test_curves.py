from __future__ import annotations

import pytest

from lib.train.curves import best_epoch, read_curves

HEADER = "epoch, time,metrics/mAP50-95(B),metrics/mAP50-95(P)\n"


def test_only_complete_lines_are_read() -> None:
    """A last line without its end is left out, even if it has all its cells; blanks around headers are removed."""
    whole = f"{HEADER}1,2.5,0.5,0.25\n 2, 5.0,0.25,0.5\n"
    expected = {
        "epoch": [1, 2], "time": [2.5, 5], "metrics/mAP50-95(B)": [0.5, 0.25], "metrics/mAP50-95(P)": [0.25, 0.5]
    }  # fmt: skip
    assert read_curves(whole) == expected
    for torn in ("3", "3,7.5,0.", "3,7.5,0.75,0.7"):
        assert read_curves(whole + torn) == expected
    for none in ("", "epo", HEADER.rstrip(), HEADER):
        assert read_curves(none) == {}


@pytest.mark.parametrize("row", ["1,2.5,0.5", "1,2.5,0.5,0.25,1", "1,2.5,0.5,high"])
def test_a_complete_line_that_does_not_fit_is_an_error(row: str) -> None:
    """Too few cells, too many, or a cell that is not a number."""
    with pytest.raises(ValueError, match=r"argument|float"):
        read_curves(f"{HEADER}1,2.5,0.5,0.25\n{row}\n")


def test_the_best_epoch_has_the_highest_sum_over_all_heads() -> None:
    """Of equal epochs it is the later one; without an epoch there is none."""
    curves = read_curves(f"{HEADER}1,1,0.5,0.1\n2,2,0.25,0.5\n3,3,0.5,0.25\n4,4,0.5,0.0\n")
    assert best_epoch(curves) == 2
    assert best_epoch(read_curves("epoch,time\n1,1\n2,2\n")) == 1
    with pytest.raises(ValueError, match="no complete epoch"):
        best_epoch(read_curves(HEADER))
