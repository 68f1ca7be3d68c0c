"""The networks by name. A model is called with a batch and with ``solve``, the engine's solve with the solver and
the gradient mode already chosen; it returns its output and the ``Stats`` of each solve it did."""

from torch import nn

from odebench.models.mlp import MLP
from odebench.models.odenet import ODENet
from odebench.models.resnet import ResNet

MODELS: dict[str, type[nn.Module]] = {
    "odenet": ODENet,
    # The same network: only its gradient mode, which is not the model's business, differs.
    "rknet": ODENet,
    "resnet": ResNet,
    "mlp": MLP,
}

__all__ = ["MLP", "MODELS", "ODENet", "ResNet"]
