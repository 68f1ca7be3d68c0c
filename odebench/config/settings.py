"""The settings of a run as one frozen object. The defaults are in the YAML files under configs/."""

from dataclasses import dataclass, replace
from typing import Any

from odebench.config.choices import read_solver
from odebench.config.compose import compose, quoted, resolved
from odebench.config.schema.base import Choice, PositiveFloat, Seed
from odebench.config.schema.losses import DynamicsSettings
from odebench.config.schema.solver import NO_SOLVER, SolverSettings
from odebench.config.schema.training import TrainerSettings


@dataclass(frozen=True)
class Settings:
    """All settings of a run, parsed and validated: one field for each group and each top-level setting."""

    model: Choice
    loss: Choice
    dynamics: DynamicsSettings
    solver: SolverSettings
    gradient: Choice
    data: Choice
    optim: Choice
    schedule: Choice
    trainer: TrainerSettings
    name: str | None
    tags: tuple[str, ...]
    notes: str | None
    task: str
    tol: PositiveFloat
    eval_solver: str | None
    eval_tol: PositiveFloat | None
    seed: Seed
    device: str
    init_from: str | None
    extensions: tuple[str, ...]
    config_dir: str | None
    outputs: str
    run_dir: str | None
    budget: str
    budgets: dict[str, Any]

    @property
    def has_ode(self) -> bool:
        """Whether the model solves an ODE. A plugin's model does if a solver is chosen."""
        return getattr(self.model, "has_ode", self.solver.name != NO_SOLVER)

    @property
    def has_ode_cell(self) -> bool:
        """Whether the model contains an ODE-RNN: a recurrent cell that follows an ODE between observations."""
        return hasattr(self.model, "encoder_solver") and getattr(self.model, "encoder", "ode_rnn") == "ode_rnn"

    @property
    def cell_solver(self) -> str | None:
        """The fixed-step method for an ODE-RNN's cell if the cell has the model's only ODE, else None.

        Such a model uses this method and backpropagation, whatever ``solver`` and ``gradient`` are.
        """
        is_only = self.has_ode_cell and not hasattr(self.model, "encoder")
        return getattr(self.model, "encoder_solver", None) if is_only else None

    @property
    def evaluation_solver(self) -> SolverSettings:
        """The solver for validation and test: the training's, unless eval_solver or eval_tol is set.

        The setting first_step="warm" is dropped: the warm step is part of the state of the training.
        """
        tol = self.tol if self.eval_tol is None else self.eval_tol
        if self.eval_solver is not None:
            chosen = compose([f"solver={quoted(self.eval_solver)}"], self.config_dir)
            chosen.tol = tol
            solver = read_solver(resolved(chosen.solver), self.extensions, self.config_dir)
        elif self.eval_tol is not None and not self.solver.fixed:
            solver = replace(self.solver, rtol=tol, atol=tol)
        else:
            solver = self.solver
        return replace(solver, first_step=None) if solver.first_step == "warm" else solver


def run_name(settings: Settings) -> str:
    """Return the part of a run folder's name after the time, e.g. ``odenet_dopri5`` or ``resnet``."""
    solver = settings.cell_solver or settings.solver.name
    return settings.model.name if solver == NO_SOLVER else f"{settings.model.name}_{solver}"
