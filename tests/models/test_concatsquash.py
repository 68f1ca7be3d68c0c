"""Fields of concatsquash layers."""

import pytest
import torch

from odebench.models.concatsquash import ConcatSquashConv, ConcatSquashMLP

TIMES = [torch.tensor(0.4), torch.linspace(0, 2, 5)]


@pytest.mark.parametrize("t", TIMES, ids=["one time", "a time a row"])
@pytest.mark.parametrize("nonlinearity", ["softplus", "tanh"])
def test_the_closed_form_trace_equals_autograds(nonlinearity, t):
    torch.manual_seed(0)
    f, t, z = ConcatSquashMLP(3, (6, 4), nonlinearity).double(), t.double(), torch.randn(5, 3).double()
    dz, trace = f.divergence(t, z)
    jacobian = torch.autograd.functional.jacobian(lambda z: f(t, z).sum(0), z).transpose(0, 1)
    torch.testing.assert_close(trace, jacobian.diagonal(dim1=1, dim2=2).sum(1))
    torch.testing.assert_close(dz, f(t, z))


@pytest.mark.parametrize(
    ("f", "shape"),
    [(ConcatSquashMLP(3, (6, 4), "tanh"), (5, 3)), (ConcatSquashConv(2, (3,), "softplus"), (5, 2, 4, 4))],
    ids=["mlp", "conv"],
)
def test_a_vector_of_times_applies_row_by_row(f, shape):
    torch.manual_seed(0)
    t, z = torch.linspace(0, 2, 5), torch.randn(shape)
    rows = [f(time, row[None])[0] for time, row in zip(t, z, strict=True)]
    torch.testing.assert_close(f(t, z), torch.stack(rows))
    assert not torch.allclose(rows[0], f(t[-1], z[:1])[0], atol=1e-3)


def test_each_layer_is_scaled_and_shifted_by_the_time():
    torch.manual_seed(0)
    f, t, z = ConcatSquashMLP(2, (3,), "tanh"), torch.tensor(0.7), torch.randn(5, 2)
    scale, shift = f.gates.gate, f.gates.shift
    gates, shifts = torch.sigmoid(scale.weight[:, 0] * t + scale.bias), shift.weight[:, 0] * t
    hidden = torch.tanh(f.layers[0](z) * gates[:3] + shifts[:3])
    torch.testing.assert_close(f(t, z), f.layers[1](hidden) * gates[3:] + shifts[3:])
