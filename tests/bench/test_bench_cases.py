"""The benchmark cases: reproducible, with equivalent published and JAX implementations."""

import pytest
import torch

from odebench.bench.cases import CASE_GROUPS, CASES, DEFAULT_CASES, build_problem, leaves_of, with_batch
from odebench.cli.bench import HELP
from odebench.errors import UsageError


@pytest.mark.parametrize("name", CASES)
def test_a_case_is_the_same_at_every_call_and_its_field_fits_its_state(name):
    state = torch.random.get_rng_state()
    first, second = build_problem(CASES[name]), build_problem(CASES[name])
    assert torch.equal(torch.random.get_rng_state(), state)
    for a, b in zip(
        [*first.parameters, *leaves_of(first.state)], [*second.parameters, *leaves_of(second.state)], strict=True
    ):
        assert torch.equal(a, b)
    rate = leaves_of(first.field(first.times[0], first.state))
    assert [(x.shape, x.dtype) for x in rate] == [(x.shape, x.dtype) for x in leaves_of(first.state)]
    assert all(x.dtype == first.times.dtype for x in rate)


def test_a_case_has_another_number_of_rows():
    for name in ("tiny", "conv", "cnf", "mixed"):
        problem = build_problem(with_batch(CASES[name], 3))
        assert {len(leaf) for leaf in leaves_of(problem.state)} == {3}
        assert {len(leaf) for leaf in leaves_of(problem.field(problem.times[0], problem.state))} == {3}
    with pytest.raises(UsageError, match="the state of vdp has no batch dimension"):
        with_batch(CASES["vdp"], 3)


def test_the_published_field_is_the_same_function_of_the_same_parameters():
    problem = build_problem(CASES["conv"])
    assert problem.published is not problem.field
    assert set(problem.published.parameters()) == set(problem.parameters)
    y, t = problem.state[:2], torch.tensor(0.3)
    torch.testing.assert_close(problem.published(t, y), problem.field(t, y), rtol=1e-4, atol=1e-5)


def test_the_flow_has_its_exact_trace():
    problem = build_problem(CASES["cnf"])
    z, t = problem.state[0][:5].double(), torch.tensor(0.7, dtype=torch.float64)
    field = problem.field.double()
    jacobian = torch.func.jacrev(lambda row: field(t, (row[None], row[None, :1]))[0][0])
    traces = torch.stack([jacobian(row).trace() for row in z])
    torch.testing.assert_close(field(t, (z, z[:, :1]))[1][:, 0], -traces)


def test_groups_contain_known_cases():
    assert all(set(names) <= set(CASES) for names in CASE_GROUPS.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_field_written_for_jax_is_the_same_function(name):
    jnp = pytest.importorskip("jax.numpy")
    from odebench.bench.diffrax_server import FIELDS

    problem = build_problem(CASES[name])
    state = [leaf.float()[:4] if leaf.dim() > 1 else leaf.float() for leaf in leaves_of(problem.state)]
    rows = tuple(state) if len(state) > 1 else state[0]
    with torch.no_grad():
        ours = leaves_of(problem.field.float()(torch.tensor(0.25), rows))
    arrays = [jnp.asarray(leaf.numpy()) for leaf in state]
    parameters = [jnp.asarray(p.detach().float().numpy()) for p in problem.parameters]
    theirs = FIELDS[name](parameters, jnp.asarray(0.25), tuple(arrays) if len(arrays) > 1 else arrays[0])
    for a, b in zip(ours, theirs if isinstance(theirs, tuple) else (theirs,), strict=True):
        torch.testing.assert_close(a, torch.tensor(b.tolist()), rtol=1e-4, atol=1e-4)


def test_the_help_of_bench_describes_the_cases():
    listed = [line.split(maxsplit=1) for line in HELP.partition("cases (")[2].split("\n\n")[0].splitlines()[1:]]
    assert dict(listed) == {name: case.description for name, case in CASES.items()}
    assert [name for name, _ in listed[:4]] == list(DEFAULT_CASES)
