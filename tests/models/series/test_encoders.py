"""The recurrent encoder's loop over tanh units gives the results of torch.nn.RNN."""

import pytest
import torch
from small_series import latent_ode, small_batch
from torch import nn

from odebench.models.series.encoders import last_hidden


@pytest.mark.parametrize("last", [[4, 4, 4], [4, 0, 2]], ids=["equal", "ragged"])
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU], ids=["tanh", "gru"])
def test_the_last_hidden_state_and_its_gradients_are_those_of_torch(kind, last):
    torch.manual_seed(0)
    recurrent = kind(3, 6, batch_first=True).double()
    inputs, last = torch.randn(3, 5, 3, dtype=torch.double), torch.tensor(last)
    ours = last_hidden(recurrent, inputs, last)
    theirs = recurrent(inputs)[0][torch.arange(3), last]
    assert torch.allclose(ours, theirs, atol=1e-14)
    weights = torch.randn(3, 6, dtype=torch.double)
    gradients = [torch.autograd.grad((weights * x).sum(), [*recurrent.parameters()]) for x in (ours, theirs)]
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-13)


def test_the_encoder_of_the_latent_ode_can_have_gated_units():
    batch, model = small_batch(), latent_ode(encoder="gru")
    assert isinstance(model.encoder.recurrent, nn.GRU)
    model(batch, batch.times).values.sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.encoder.recurrent.parameters())
