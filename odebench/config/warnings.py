"""Warnings for settings that are valid but have no effect, or that are probably a mistake."""

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from odebench.config.schema.solver import AdjointGradientSettings
from odebench.config.settings import Settings


def without_effect(settings: Settings, overrides: Iterable[str]) -> list[str]:
    """Return one line for the log for each override of the command line that has no effect."""
    given = dict(override.partition("=")[::2] for override in overrides)
    unused = [(key, why) for keys, why in _unused(settings, given) for key in given if re.fullmatch(keys, key)]
    return [f"{key}={given[key]} has no effect: {why}" for key, why in unused]


def _unused(s: Settings, given: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield (regular expression for keys of unused settings, reason). given: the keys on the command line."""
    if s.trainer.iterations is not None:
        yield "trainer.epochs", f"trainer.iterations={s.trainer.iterations} is set"
    if not s.has_ode:
        yield "tol|eval_tol|trainer.max_nfe|(solver|dynamics)\\..*", f"model={s.model.name} has no ODE"
    elif s.solver.fixed and s.evaluation_solver.fixed:
        yield "tol|solver.(rtol|atol)", f"{s.solver.name} has fixed steps; solver.steps is their number"
    elif {"solver.rtol", "solver.atol"} <= set(given):
        yield "tol", "solver.rtol and solver.atol are set"
    if s.has_ode and s.solver.fixed:
        yield "solver.(controller|first_step|min_step|max_step)", f"{s.solver.name} has fixed steps"
    model: Any = s.model
    if s.cell_solver:
        keys = "(tol|eval_tol|eval_solver|solver|gradient)|(solver|gradient)\\..*"
        yield keys, f"model.encoder_solver={s.cell_solver} solves the only ODE; set it to null"
    encoder = getattr(model, "encoder", None)
    if encoder in ("rnn", "gru"):
        keys = "model.(encoder_solver|encoder_step|gate_units|encoder_field_units)"
        yield keys, f"it is for model.encoder=ode_rnn, not {encoder}"
    elif s.has_ode_cell and model.encoder_solver is None:
        yield "model.encoder_step", "with model.encoder_solver=null the encoder uses the solver of the setting solver"
    for switch, keys in {
        "observations": "model.(noise_std|learn_noise|decoder_units)",
        "events": "model.event_units|loss.event_weight",
        "classify": "model.classifier_units|loss.label_weight",
        "time_gap": "model.gap_unit",
    }.items():
        if getattr(model, switch, True) is False:
            yield keys, f"model.{switch}=false"
    if getattr(s.loss, "kl_wait_epochs", 0) is None:
        yield "loss.kl_growth", "with loss.kl_wait_epochs=null the weight of the divergence is always 1"
    if s.has_ode and not s.dynamics.taylor:
        yield "dynamics.taylor_order", "dynamics.taylor=0"
    if s.loss.name == "flow_matching":
        yield "gradient|gradient\\..*|trainer.max_nfe", "loss=flow_matching solves nothing in training"


def probable_mistakes(settings: Settings) -> list[str]:
    """Return one line for the log for each valid setting that is probably a mistake."""
    found = []
    tols = [t for t in (settings.solver.rtol, settings.solver.atol) if t is not None]
    adaptive = settings.has_ode and not settings.solver.fixed
    if settings.trainer.precision == "bf16" and adaptive and min(tols) < 1e-3:
        found.append(
            f"trainer.precision=bf16 with a tolerance of {min(tols):g}: below 1e-3 the rounding of bf16 "
            "costs many more evaluations; use tol=1e-3 or float32"
        )
    if getattr(settings.model, "encoder", None) == "ode_rnn":
        for unit in ("value_unit", "gap_unit"):
            if (size := getattr(settings.model, unit, 1)) != 1:
                found.append(f"model.{unit}={size:g} has no effect: it is for model.encoder=rnn and gru; set it to 1")
    noise = getattr(settings.model, "noise", "rademacher")
    if noise != "rademacher" and getattr(settings.model, "trace", None) == "exact":
        found.append(f"model.noise={noise} has no effect: model.trace=exact draws none; leave it out")
    if settings.loss.name == "flow_matching" and getattr(settings.model, "train_time", False):
        found.append(
            "model.train_time=true has no effect: loss=flow_matching does not train the end time; set it to false"
        )
    gradient = settings.gradient
    if isinstance(gradient, AdjointGradientSettings) and (settings.solver.fixed or gradient.steps is not None):
        for key in ("rtol", "atol"):
            if (tol := getattr(gradient, key)) is not None:
                found.append(f"gradient.{key}={tol:g} has no effect: the backward steps are fixed; set it to null")
    if settings.eval_tol is not None and settings.has_ode and settings.evaluation_solver.fixed:
        found.append(f"eval_tol={settings.eval_tol:g} has no effect: {settings.evaluation_solver.name} has fixed steps")
    return found
