"""The units by which recurrent networks divide values and time gaps."""

import math

import torch

from odebench.models.series.cells import TimeGapCell
from odebench.models.series.encoders import RecurrentEncoder
from odebench.models.series.recurrence import Observations


def test_the_encoder_divides_values_and_gaps_by_its_units():
    torch.manual_seed(0)
    times, values, mask = torch.rand(7).cumsum(0), torch.randn(3, 7, 2), torch.rand(3, 7, 2) < 0.7
    scaled, plain = RecurrentEncoder(2, 5, 4, "tanh", 3.0, 0.5), RecurrentEncoder(2, 5, 4, "tanh")
    plain.load_state_dict(scaled.state_dict())
    found, _ = scaled(Observations(times, values, mask), None)
    expected, _ = plain(Observations(times / 0.5, values / 3.0, mask), None)
    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.std, expected.std)
    other, _ = plain(Observations(times, values, mask), None)
    assert not torch.allclose(found.mean, other.mean, rtol=0.01)


def test_the_cell_divides_values_and_gaps_by_its_units():
    torch.manual_seed(0)
    scaled, plain = TimeGapCell(2, 5, "tanh", True, 3.0, 0.5), TimeGapCell(2, 5, "tanh", True)
    plain.load_state_dict(scaled.state_dict())
    hidden, values, mask, gap = torch.randn(3, 5), torch.randn(3, 2), torch.ones(3, 2), torch.rand(3)
    found = scaled.advance((hidden, values, mask), gap, None, math.nan)
    expected = plain.advance((hidden, values / 3.0, mask), gap / 0.5, None, math.nan)
    torch.testing.assert_close(found[0], expected[0])
    assert torch.equal(found[1], values)  # the stored values are in the data's units
