"""The solver and the gradient mode."""

from dataclasses import dataclass
from typing import Any, Literal

from odebench.rules.numbers import Count, Positive

NO_SOLVER = "none"


@dataclass(frozen=True)
class Solver:
    """Any solver; rtol and atol rule adaptive steps, steps or step_size fixed ones.

    options: what only this method has, such as the damping of alf; each is a key of its own in YAML.
    """

    name: str
    rtol: Positive | None
    atol: Positive | None
    steps: Count | None
    step_size: Positive | None
    first_step: Positive | Literal["warm"] | None
    min_step: Positive | None
    max_step: Positive | None
    max_steps: Count | None
    controller: Literal["integral", "pi", "pid"]
    sync_steps: bool
    stepping: Literal["shared", "per_sample"]
    stop_at_times: bool
    compile: bool
    options: dict[str, Any]

    @property
    def fixed(self) -> bool:
        """Whether the steps are given, not chosen by the error."""
        return self.steps is not None or self.step_size is not None


@dataclass(frozen=True)
class Exact:
    """backprop and reversible, which have no options."""

    name: str


@dataclass(frozen=True)
class Checkpoint:
    """checkpoint."""

    name: str
    checkpoints: Count | None
    recompute: Literal["step", "stage"]
    keep: Literal["states", "graphs"]


@dataclass(frozen=True)
class Adjoint:
    """adjoint and interpolated_adjoint; null takes what the forward solve has."""

    name: str
    rtol: Positive | None
    atol: Positive | None
    method: str | None
    steps: Count | None
    norm: Literal["semi", "full"]


GRADIENTS: dict[str, type[Any]] = {
    "backprop": Exact,
    "checkpoint": Checkpoint,
    "adjoint": Adjoint,
    "interpolated_adjoint": Adjoint,
    "reversible": Exact,
}
