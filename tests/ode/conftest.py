"""Fixtures of compiled solves."""

import pytest
import torch

from odebench.ode.compiled import graph

torch_compile, OLDEST_TORCH = torch.compile, graph.OLDEST_TORCH


@pytest.fixture(autouse=True)
def any_torch(monkeypatch):
    """Run graphs that are not compiled with older versions of torch, too. Each test gets its warnings."""
    monkeypatch.setattr(graph, "OLDEST_TORCH", "0")
    graph._warn_once.cache_clear()


@pytest.fixture
def uncompiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


@pytest.fixture
def captured(monkeypatch):
    """Capture the graphs like a compiled solve, and run them without a C++ compiler."""
    if torch.__version__ < OLDEST_TORCH:
        pytest.skip(f"torch is older than {OLDEST_TORCH}")

    def capture(f, options=None, **_):
        options = {key: value for key, value in (options or {}).items() if key == "guard_filter_fn"}
        return torch_compile(f, fullgraph=True, dynamic=False, backend="eager", options=options)

    monkeypatch.setattr(torch, "compile", capture)


@pytest.fixture
def only_forward(monkeypatch):
    """Run graphs uncompiled; those of gradients cannot be compiled."""

    def compile(function, **_):
        if function.__name__ == "backward":
            raise RuntimeError("no")
        return function

    monkeypatch.setattr(torch, "compile", compile)
