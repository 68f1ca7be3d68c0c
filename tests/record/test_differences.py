"""Names of runs by the settings that differ."""

import pytest

from odebench.record.differences import MAX_NAME, name_by, short_keys


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"tol": "0.01", "gradient": "adjoint"}, "tol=0.01_gradient=adjoint"),
        ({"gradient.name": "adjoint", "tol": 1e-5, "seed": 3.0}, "gradient=adjoint_tol=1e-05_seed=3"),
        ({"model.width": 8, "data.width": 9}, "model.width=8_data.width=9"),
        ({"+model.units": "[64,32]", "init_from": "'a b/c'"}, "units=-64-32_init_from=-a-b-c"),
        ({"optim.lr": "0.00123456789"}, "lr=0.001235"),
        ({"trainer.max_minutes": None, "trainer.compile": True}, "compile=true"),
        ({}, ""),
    ],
)
def test_a_name_has_the_settings_that_vary(values, name):
    assert name_by(values) == name


def test_a_long_name_loses_whole_settings():
    name = name_by({f"model.{letter}": "x" * 20 for letter in "abcdefgh"})
    assert len(name) <= MAX_NAME
    assert name.split("_")[-1] == "d=" + "x" * 20


def test_short_keys_stay_different():
    assert short_keys(["solver.name", "solver.steps", "model.steps"]) == {
        "solver.name": "solver",
        "solver.steps": "solver.steps",
        "model.steps": "model.steps",
    }
