import logging
import math

import pytest

from odebench.training import display
from odebench.training.display import ProgressDisplay


@pytest.mark.parametrize(("seconds_left", "remaining"), [(math.inf, "01:30"), (40.0, "00:30"), (5.0, "00:00")])
def test_the_remaining_time_is_limited_by_max_minutes(seconds_left, remaining, caplog, monkeypatch):
    now = 100.0
    monkeypatch.setattr(display.time, "monotonic", lambda: now)
    shown = ProgressDisplay(0, 100, 10, seconds_left)
    now = 110.0
    with caplog.at_level(logging.INFO, "odebench"):
        shown.show_validation(10, {"val/loss": 0.5})
    assert caplog.messages == [f"epoch 1/10  val/loss 0.5  {remaining} to go"]
