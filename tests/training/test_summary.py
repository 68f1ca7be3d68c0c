from pathlib import Path

import pytest

from odebench.training.summary import summary_metrics, training_table


def test_a_row_is_weighted_by_the_steps_that_it_covers_in_the_last_epoch():
    # Rows every ten steps and at the end, of steps that took 5, 10, 10 and 100 ms; the last epoch is steps 12 to 31.
    rows = [
        {"step": step, "time/step_ms": ms, "throughput/samples_per_s": 64e3 / ms, "nfe/forward": nfe}
        for step, ms, nfe in ((10, 5.0, 7), (20, 10.0, 14), (30, 10.0, 14), (31, 100.0, 34))
    ]
    rows.insert(2, {"step": 20, "val/accuracy": 0.5})
    numbers = summary_metrics(rows, best_step=20, steps_per_epoch=20)
    assert numbers["final/step_ms"] == pytest.approx((19 * 10 + 100) / 20)
    assert numbers["final/samples_per_s"] == pytest.approx(64e3 / numbers["final/step_ms"])
    assert numbers["final/nfe_forward"] == pytest.approx((19 * 14 + 34) / 20)
    assert (numbers["best/epoch"], numbers["best/accuracy"]) == (1, 0.5)


def test_quantities_never_logged_have_no_summary_metric():
    numbers = summary_metrics([{"step": 4, "val/loss": 1.0}], best_step=4, steps_per_epoch=4)
    assert set(numbers) == {"best/step", "best/epoch", "best/loss", "final/val_loss"}


def test_a_command_too_long_for_the_terminal_stands_alone_in_one_line():
    summary = {"run": "rknet, dopri5", "parameters": 7, "notes": "many words " * 9, "results": {}}
    folder = Path("outputs/2026-11-24/14-03-22-123456_odenet_dopri5")
    assert training_table(summary, folder).splitlines()[-1] == f"dashboard  odebench tensorboard {folder}"
    lines = training_table(summary, folder, 75).splitlines()
    assert lines[-2:] == [f"record  {folder}", f"odebench tensorboard {folder}"]
    assert max(map(len, lines)) <= 75
