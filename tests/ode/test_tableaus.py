"""The tableaus of the explicit Runge-Kutta methods satisfy the conditions of their order, and of no higher order."""

from dataclasses import replace
from math import factorial, fsum

import pytest

from odebench.ode.methods import explicit, explicit_high_order
from odebench.ode.methods.order_conditions import gamma, sigma, size, stage_weights, trees
from odebench.ode.methods.tableau import Tableau

TABLEAUS = {
    value.name: value
    for module in (explicit, explicit_high_order)
    for value in vars(module).values()
    if isinstance(value, Tableau)
}
ADAPTIVE = [name for name, method in TABLEAUS.items() if method.adaptive]
THETAS = (0.1, 0.35, 0.6, 0.9)


def residual(weights, elementary, order, theta=1.0):
    """The largest residual of the conditions of exactly this order."""
    return max(
        abs(fsum(w * u_i for w, u_i in zip(weights, u, strict=False)) - theta**order / gamma(tree))
        for tree, u in elementary.items()
        if size(tree) == order
    )


def dense_weights(method, theta):
    return [fsum(p * theta ** (j + 1) for j, p in enumerate(row)) for row in method.dense]


def slope_weights(method, theta):
    """The derivative of the dense weights."""
    return [fsum((j + 1) * p * theta**j for j, p in enumerate(row)) for row in method.dense]


@pytest.fixture(scope="module", params=TABLEAUS)
def method(request):
    return TABLEAUS[request.param]


@pytest.fixture(scope="module", params=ADAPTIVE)
def pair(request):
    return TABLEAUS[request.param]


def test_all_methods_are_tested():
    fixed = {"euler", "midpoint", "heun2", "ralston", "heun3", "rk4", "rk4_classic"}
    assert set(ADAPTIVE) == {"adaptive_heun", "fehlberg2", "bosh3", "dopri5", "tsit5", "vern7", "dopri8"}
    assert set(TABLEAUS) == fixed | set(ADAPTIVE)


def test_every_rooted_tree_is_counted_once():
    assert [len(trees(n)) for n in range(1, 10)] == [1, 1, 2, 4, 9, 20, 48, 115, 286]
    assert all(len(set(trees(n))) == len(trees(n)) for n in range(1, 10))
    # (n - 1)! ways to grow a tree node by node.
    for n in range(1, 10):
        assert sum(factorial(n) // (gamma(tree) * sigma(tree)) for tree in trees(n)) == factorial(n - 1)


def test_step_has_exactly_its_order(method):
    elementary = stage_weights(method.a, method.order + 1)
    assert max(residual(method.b, elementary, n) for n in range(1, method.order + 1)) < 2e-14
    assert residual(method.b, elementary, method.order + 1) > 1e-6


def test_embedded_method_is_one_order_lower(pair):
    elementary = stage_weights(pair.a, pair.order)
    embedded = [b - e for b, e in zip(pair.b, pair.error, strict=True)]
    assert max(residual(embedded, elementary, n) for n in range(1, pair.order)) < 2e-14
    assert residual(embedded, elementary, pair.order) > 1e-5


def test_rows_sum_to_their_nodes(method):
    for c, row in zip((*method.c, *method.extra_c), (*method.a, *method.extra_a), strict=True):
        assert fsum(row) == pytest.approx(c, rel=0, abs=1e-15 * max(1, *map(abs, row), 1))


def test_dense_output_has_exactly_its_order(pair):
    elementary = stage_weights((*pair.a, *pair.extra_a), pair.dense_order + 1)
    for theta in THETAS:
        weights = dense_weights(pair, theta)
        largest = max(residual(weights, elementary, n, theta) for n in range(1, pair.dense_order + 1))
        assert largest < 5e-13, theta  # the coefficients of dopri8 go up to 1,268
    beyond = [residual(dense_weights(pair, theta), elementary, pair.dense_order + 1, theta) for theta in THETAS]
    assert max(beyond) > 1e-6


def test_dense_output_ends_at_the_step(pair):
    assert len(pair.dense) == pair.dense_stages == pair.stages + len(pair.extra_a)
    assert dense_weights(pair, 0) == [0] * pair.dense_stages
    assert dense_weights(pair, 1) == pytest.approx([*pair.b, *[0] * len(pair.extra_a)], rel=0, abs=2e-13)


def test_dense_output_has_a_continuous_derivative(pair):
    """The derivative at either end is f."""
    first = [float(i == 0) for i in range(pair.dense_stages)]
    end = [float(i == pair.end_stage) for i in range(pair.dense_stages)]
    assert slope_weights(pair, 0) == first
    assert slope_weights(pair, 1) == pytest.approx(end, rel=0, abs=3e-12)


def test_the_stage_at_the_end_is_found():
    assert [name for name in TABLEAUS if TABLEAUS[name].fsal] == ["bosh3", "dopri5", "tsit5", "dopri8"]
    assert {name: TABLEAUS[name].end_stage for name in ADAPTIVE} == {
        "adaptive_heun": 2,
        "fehlberg2": 3,
        "bosh3": 3,
        "dopri5": 6,
        "tsit5": 6,
        "dopri8": 13,
        "vern7": 10,
    }
    assert explicit.RK4.end_stage is None
    # Nearly f at the end is not f at the end.
    nearly = replace(explicit.BOSH3, a=(*explicit.BOSH3.a[:-1], (2 / 9, 1 / 3 + 1e-15, 4 / 9)))
    assert not nearly.fsal
    assert nearly.end_stage is None


def test_fixed_steps_need_neither_error_nor_dense_output(pair):
    fixed = pair.for_fixed_steps()
    assert not fixed.adaptive
    assert fixed.dense_stages == fixed.stages == pair.stages - pair.fsal
    elementary = stage_weights(fixed.a, fixed.order)
    assert max(residual(fixed.b, elementary, n) for n in range(1, fixed.order + 1)) < 2e-14


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"b": (1.0,)}, "row i = 0, 1, ... of a needs i"),
        ({"extra_c": (1.0,), "extra_a": ((1.0,),)}, "row i = 0, 1, ... of a needs i"),
        ({"error": (0.5, 0.5)}, "an adaptive method needs"),
        ({"error": (0.5, -0.5), "dense": ((1.0,), (0.0,))}, "dense_order"),
        ({"error": (0.5, -0.5), "dense": ((1.0,),), "dense_order": 1}, "dense needs 2 rows"),
        ({"extra_c": (1.0,), "extra_a": ((0.5, 0.5),)}, "dense needs 3 rows"),
    ],
)
def test_an_inconsistent_tableau_raises_an_error(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(explicit.HEUN2, **changes)


@pytest.mark.parametrize("name", ["adaptive_heun", "fehlberg2", "bosh3", "dopri5", "dopri8"])
def test_adaptive_methods_have_the_coefficients_of_torchdiffeq(name):
    """So that step counts agree. The sign of the error does not matter."""
    pytest.importorskip("torchdiffeq")
    from torchdiffeq._impl.odeint import SOLVERS

    theirs, ours = SOLVERS[name].tableau, TABLEAUS[name]
    assert ours.order == SOLVERS[name].order
    assert ours.c == pytest.approx((0, *theirs.alpha.tolist()), rel=1e-15)
    assert ours.b == pytest.approx(theirs.c_sol.tolist(), rel=1e-15)
    for row, beta in zip(ours.a[1:], theirs.beta, strict=True):
        assert row == pytest.approx(beta.tolist(), rel=1e-15)
    sign = -1 if name == "adaptive_heun" else 1
    assert ours.error == pytest.approx([sign * e for e in theirs.c_error.tolist()], rel=1e-13)


@pytest.mark.parametrize("name", ["euler", "midpoint", "heun2", "heun3", "rk4"])
def test_fixed_methods_step_as_torchdiffeq_does(name):
    """On y' = t y^2 + 1, by the tableau as it stands."""
    torchdiffeq = pytest.importorskip("torchdiffeq")
    torch = pytest.importorskip("torch")
    h, method = 0.5, TABLEAUS[name]

    def f(t, y):
        return t * y * y + 1

    times = torch.tensor([0.25, 0.25 + h], dtype=torch.float64)
    theirs = torchdiffeq.odeint(f, torch.tensor([0.7], dtype=torch.float64), times, method=name)[-1].item()
    slopes = []
    for c, row in zip(method.c, method.a, strict=True):
        slopes.append(f(0.25 + c * h, 0.7 + h * fsum(a * k for a, k in zip(row, slopes, strict=True))))
    assert 0.7 + h * fsum(b * k for b, k in zip(method.b, slopes, strict=True)) == pytest.approx(theirs, rel=1e-14)
