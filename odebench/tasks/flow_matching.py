"""Flow matching: a velocity field learned by regression, without a solve."""

from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def flow_matching_loss(model: Any, x1: Tensor, coupling: str, sigma: float) -> Tensor:
    """The mean square of T v(tT, x_t) - (x1 - x0) at x_t = (1 - t) x0 + t x1 + sigma eps, a scalar.

    x1: data [B, *shape]; x0 is drawn from the model's base, t uniformly in [0, 1], T is the model's end time (Lipman et
    al. 2023; Tong et al. 2024, independent coupling). With coupling "optimal_transport" data and noise of the batch are
    paired by the transport of the least total squared distance (Tong et al. 2024, minibatch OT).
    """
    num = len(x1)
    x0 = model.base_sample(num).to(x1)
    if coupling == "optimal_transport":
        x0 = x0[transport_plan(x0, x1)]
    t = torch.rand(num, device=x1.device, dtype=x1.dtype)
    share = t.view(num, *[1] * (x1.ndim - 1))
    x_t = (1 - share) * x0 + share * x1
    if sigma:
        x_t = x_t + sigma * torch.randn_like(x_t)
    velocity = model.end_time * model.velocity(t * model.end_time, x_t)
    return (velocity - (x1 - x0)).square().mean()


def transport_plan(x0: Tensor, x1: Tensor) -> Tensor:
    """For each row of x1 [B, *shape] the row of x0 that optimal transport pairs it with, int64 [B]."""
    cost = torch.cdist(x1.flatten(1), x0.flatten(1)).square()
    return torch.as_tensor(linear_sum_assignment(cost.cpu().numpy())[1], device=x1.device)
