import io
import logging
import math
import re
import sys

import pytest

from odebench.training import display
from odebench.training.display import ProgressDisplay

CLASSIFICATION = {"val/loss": 2.308, "val/accuracy": 0.15, "val/nfe": 26.0}
SERIES = {"val/loss": 4105.1, "val/elbo_nats": -4105.1, "val/mse": 12.33, "val/mse_per_feature": 12.33}


@pytest.mark.parametrize(("seconds_left", "remaining"), [(math.inf, "01:30"), (40.0, "00:30"), (5.0, "00:00")])
def test_the_remaining_time_is_limited_by_max_minutes(seconds_left, remaining, caplog, monkeypatch):
    now = 100.0
    monkeypatch.setattr(display.time, "monotonic", lambda: now)
    shown = ProgressDisplay(0, 100, 10, seconds_left, "val/loss")
    now = 110.0
    with caplog.at_level(logging.INFO, "odebench"):
        shown.show_validation(10, {"val/loss": 0.5})
    assert caplog.messages == [f"epoch 1/10  val loss 0.5000  {remaining} left"]


@pytest.mark.parametrize(
    ("objective", "metrics", "expected"),
    [
        ("val/accuracy", CLASSIFICATION, "val accuracy 0.1500, loss 2.308"),
        ("val/loss", SERIES, "val loss 4105, MSE 12.33"),
        ("val/elbo_nats", SERIES, "val ELBO -4105, MSE 12.33"),  # the loss is the same number
        ("val/nll_nats", {"val/loss": 5.3, "val/nll_nats": 5.3}, "val NLL 5.300"),
    ],
)
def test_the_line_of_an_epoch_shows_no_number_twice(objective, metrics, expected, caplog):
    with caplog.at_level(logging.INFO, "odebench"):
        ProgressDisplay(0, 100, 10, math.inf, objective).show_validation(10, metrics)
    (line,) = caplog.messages
    assert line.split("  ")[1] == expected


def test_the_line_of_an_epoch_has_mean_nfe_and_at_most_80_columns(caplog):
    shown = ProgressDisplay(0, 12_000, 100, math.inf, "val/rmse_extrapolation")
    with caplog.at_level(logging.INFO, "odebench"):
        for nfe in (100, 104):
            shown.show_step(1, {"nfe/forward": nfe, "nfe/backward": 2 * nfe, "time/step_ms": 1234.5})
        for step, loss in ((100, 12.345), (10_000, -123456.7)):
            shown.show_validation(
                step, {"val/rmse_extrapolation": 0.123456, "val/mse_per_feature": 2.0, "val/loss": loss}
            )
            shown.show_step(1, {"nfe/forward": 1500.5, "nfe/backward": 25.0})
    first, second = caplog.messages
    assert "  NFE 102+204  1234 ms  " in first
    assert "  NFE 1500+25  " in second
    assert max(len(first), len(second)) <= 80
    assert "loss -1.235e+05" not in second  # left out, not cut
    assert "val/mse_per_feature 2 " in caplog.records[0].details  # of log.txt


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("columns", [30, 80, 200])
def test_the_progress_bar_shows_nfe_first_and_cuts_no_number(columns, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", str(columns))
    metrics = {"train/loss": 2.308, "train/nll_nats": 2.308, "train/accuracy": 0.125, "time/step_ms": 1.25}
    with ProgressDisplay(0, 20, 10, 0.0, "val/loss") as shown:
        shown.show_step(1, {**metrics, "nfe/forward": 13.0, "nfe/backward": 25.0})
        shown._bar.refresh()
        drawn = re.split("[\r\n]", sys.stderr.getvalue())
    fields = next(line for line in drawn if "NFE" in line).partition("| ")[2].split("  ")
    everything = [
        "NFE 13+25",
        "epoch 1/2",
        "00:00 left",
        "NLL 2.308",
        "1.25 ms",
        "accuracy 0.1250",
    ]
    assert fields == everything[: {30: 1, 80: 5, 200: 6}[columns]]
