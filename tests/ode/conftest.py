"""Fixtures of compiled solves."""

import pytest
import torch

torch_compile = torch.compile


@pytest.fixture
def uncompiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


@pytest.fixture
def captured(monkeypatch):
    """Capture the graphs like a compiled solve, and run them without a C++ compiler."""
    monkeypatch.setattr(
        torch, "compile", lambda f, **_: torch_compile(f, fullgraph=True, dynamic=False, backend="eager")
    )
