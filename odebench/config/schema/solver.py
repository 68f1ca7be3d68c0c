"""The solver and the gradient mode."""

from dataclasses import dataclass
from typing import Any, Literal

from odebench.config.schema.base import Choice, PositiveFloat, PositiveInt

NO_SOLVER = "none"


@dataclass(frozen=True)
class SolverSettings(Choice):
    """The settings of every solver: rtol and atol control adaptive steps, steps or step_size fixed steps.

    options: settings of this method only, such as the damping of ``alf``; each is a key of the solver in YAML.
    """

    rtol: PositiveFloat | None
    atol: PositiveFloat | None
    steps: PositiveInt | None
    step_size: PositiveFloat | None
    first_step: PositiveFloat | Literal["warm"] | None
    min_step: PositiveFloat | None
    max_step: PositiveFloat | None
    max_steps: PositiveInt | None
    controller: Literal["integral", "pi", "pid"]
    sync_steps: bool
    stepping: Literal["shared", "per_sample"]
    stop_at_times: bool
    compile: bool | Literal["step", "solve"]
    compile_math: Literal["exact", "fast"]
    options: dict[str, Any]

    @property
    def fixed(self) -> bool:
        """Whether the steps are fixed, not chosen by error control."""
        return self.steps is not None or self.step_size is not None

    @property
    def step_control(self) -> str:
        """How steps are chosen, as text: ``8 steps``, ``step size 0.1``, ``tol 0.001`` or ``rtol 0.001 atol 1e-05``."""
        if self.steps is not None:
            return f"{self.steps} steps"
        if self.step_size is not None:
            return f"step size {self.step_size:g}"
        if self.rtol == self.atol:
            return f"tol {self.rtol:g}"
        return f"rtol {self.rtol or 0:g} atol {self.atol or 0:g}"


@dataclass(frozen=True)
class CheckpointGradientSettings(Choice):
    """The settings of ``checkpoint``."""

    checkpoints: PositiveInt | None
    recompute: Literal["step", "stage"]
    keep: Literal["states", "graphs"]


@dataclass(frozen=True)
class AdjointGradientSettings(Choice):
    """The settings of ``adjoint`` and ``interpolated_adjoint``; null takes the forward solve's value."""

    rtol: PositiveFloat | None
    atol: PositiveFloat | None
    method: str | None
    steps: PositiveInt | None
    norm: Literal["semi", "full"]
    error: Literal["relative", "absolute"]


GRADIENTS: dict[str, type[Any]] = {
    "backprop": Choice,
    "checkpoint": CheckpointGradientSettings,
    "adjoint": AdjointGradientSettings,
    "interpolated_adjoint": AdjointGradientSettings,
    "reversible": Choice,
}
