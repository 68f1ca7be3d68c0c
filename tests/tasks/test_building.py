"""The engine's choices, reached from the settings."""

import pytest
import torch

from odebench.errors import UsageError
from odebench.settings import compose, read_settings
from odebench.tasks import build_task


@pytest.fixture
def task(tiny_odenet):
    def build(*overrides):
        return build_task(read_settings(compose([*tiny_odenet, *overrides])), torch.device("cpu"))

    return build


def gradient_of(task):
    """The gradient of the first step's loss, and the solve's statistics."""
    torch.manual_seed(0)
    loss = task.loss(task.batch(0))
    loss.value.backward()
    return torch.cat([p.grad.flatten() for p in task.model.parameters()]), loss.solves[0]


def weights(task):
    """The same weights whatever was built before."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.normal_(0, 0.2, generator=generator)
    return task


EXACT = [
    "solver=dopri8 solver.controller=pid gradient=checkpoint gradient.checkpoints=8",
    "solver=tsit5 gradient=checkpoint gradient.keep=graphs",
    "solver=bosh3 gradient=checkpoint gradient.recompute=stage",
    "solver=dopri5 solver.stepping=per_sample gradient=checkpoint",
    "solver=reversible_rk4 solver.steps=4 gradient=reversible",
    "solver=alf solver.damping=0.95 gradient=reversible",
]


@pytest.mark.parametrize("choice", EXACT)
def test_exact_modes_train_with_the_gradient_of_backprop(task, choice):
    ours, stats = gradient_of(weights(task(*choice.split())))
    words = [word for word in choice.split() if not word.startswith("gradient")]
    theirs, other = gradient_of(weights(task(*words, "gradient=backprop")))
    assert stats.accepted == other.accepted > 1
    torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-3 * float(theirs.abs().max()))


@pytest.mark.parametrize("choice", ["gradient=interpolated_adjoint", "gradient.norm=full", "gradient.method=tsit5"])
def test_continuous_modes_come_near_it(task, choice):
    extra = [] if choice.startswith("gradient=") else ["gradient=adjoint"]
    ours, stats = gradient_of(weights(task(*extra, choice, "tol=1e-5")))
    theirs, _ = gradient_of(weights(task("gradient=backprop", "tol=1e-5")))
    assert stats.backward.nfe > 0
    assert float((ours - theirs).norm() / theirs.norm()) < 0.02


@pytest.mark.parametrize("solver", ["adams", "scipy_rk45", "vode_adams", "explicit_adams"])
def test_methods_of_every_family_evaluate(task, solver):
    built = weights(task(f"solver={solver}", "gradient=adjoint", "tol=1e-2"))
    reference = weights(task("gradient=adjoint", "tol=1e-4")).evaluate("validation")
    assert built.evaluate("validation")["loss"] == pytest.approx(reference["loss"], rel=0.02)


REFUSED = {
    "solver=dopri5 solver.stepping=per_sample gradient=adjoint": "per_sample",
    "solver=scipy_rk45 gradient=backprop": "SciPy",
    "solver=adams gradient=checkpoint": "gradient='checkpoint'",
}


@pytest.mark.parametrize("choice", REFUSED)
def test_a_combination_without_meaning_is_refused_before_anything_is_written(task, choice):
    with pytest.raises(UsageError, match=r"^solver=") as caught:
        task(*choice.split())
    assert REFUSED[choice] in str(caught.value)
    assert "\n" not in str(caught.value)
