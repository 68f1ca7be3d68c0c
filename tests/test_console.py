"""Tables that fit the width of a terminal."""

import pytest

from odebench.console import fitted, progress_text

RUNS = [
    ("RUN", "MODEL", "SOLVER", "STATUS", "BEST", "STEP"),
    ("outputs/a", "odenet", "dopri5", "done", "val/accuracy 0.9", "70"),
    ("outputs/b", "odenet", "tsit5", "done", "val/accuracy 0.8", "71"),
]


WIDE = """\
outputs/a  odenet  dopri5  done    val/accuracy 0.9  70
outputs/b  odenet  tsit5   done    val/accuracy 0.8  71"""
NARROWER = """\
outputs/a  dopri5  val/accuracy 0.9  70
outputs/b  tsit5   val/accuracy 0.8  71
all:  model odenet  status done"""
NARROW = """\
outputs/a  dopri5  val/accuracy 0.9
outputs/b  tsit5   val/accuracy 0.8
all:  model odenet  status done"""
BLOCKS = """\
outputs/a
  solver dopri5
  best val/accuracy 0.9
outputs/b
  solver tsit5
  best val/accuracy 0.8
all:  model odenet
status done"""


@pytest.mark.parametrize(("width", "expected"), [(70, WIDE), (45, NARROWER), (36, NARROW), (25, BLOCKS)])
def test_a_table_gives_up_shared_values_then_columns_then_its_columns(width, expected):
    lines = fitted(RUNS, width, ["STEP"])
    assert "\n".join(lines).endswith(expected)
    assert max(map(len, lines)) <= width
    assert ("RUN" in lines[0]) == (width > 25)


def test_titles_take_several_lines_before_a_column_is_left_out():
    rows = [
        ("tol", "test accuracy (%)", "peak memory (MiB)", "ms"),
        ("0.1", "62.6", "5.84", "9"),
        ("0.01", "7", "57", "8"),
    ]
    assert fitted(rows, 30, ["ms"], ["test accuracy (%)", "ms"]) == [
        "          test  peak",
        "      accuracy  memory",
        "tol        (%)  (MiB)   ms",
        "0.1       62.6  5.84     9",
        "0.01         7  57       8",
    ]
    assert fitted(rows, 22, ["ms"])[-1] == "0.01  7         57"
    assert fitted(rows, 15, ["ms"]) == [
        *("0.1", "  test accuracy (%) 62.6", "  peak memory (MiB) 5.84"),
        *("0.01", "  test accuracy (%) 7", "  peak memory (MiB) 57"),
    ]


def test_the_last_column_wraps_between_words():
    rows = [("dopri5", "Dormand-Prince order 5(4), the default of many libraries"), ("rk4", "four stages")]
    lines = fitted(rows, 40)
    assert max(map(len, lines)) <= 40
    assert (
        " ".join(" ".join(lines).split())
        == "dopri5 Dormand-Prince order 5(4), the default of many libraries rk4 four stages"
    )
    assert lines[-1] == "rk4     four stages"
    assert fitted([("a" * 30, "b" * 30)], 40) == ["a" * 30 + "  " + "b" * 30]


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((0, 40, 100.0), "0 of 40"),
        ((12, 40, 77.0), "12 of 40, about 3 min left"),
        ((12, 40, 15.0, 11), "12 of 40, about 7 min left"),
        ((39, 40, 390.0), "39 of 40, about 10 s left"),
        ((1, 3, 7200.0), "1 of 3, about 4 h left"),
    ],
)
def test_progress_tells_the_time_that_is_left(numbers, text):
    assert progress_text(*numbers) == text
