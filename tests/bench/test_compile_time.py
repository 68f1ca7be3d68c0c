"""The time to compile: in new processes, the second of which finds what the first compiled."""

import os

from odebench.bench import compile_time
from odebench.bench.cases import CASES, with_batch
from odebench.bench.compile_time import CACHE_VARIABLE, compile_seconds, compiler_cache
from odebench.bench.preparation import LibraryConfig


def test_a_cold_and_a_warm_process_share_the_cache(monkeypatch, tmp_path):
    seen = []

    def run(name, batch, config, tol):
        seen.append((os.environ[CACHE_VARIABLE], name, batch))
        return 30.0 / len(seen)

    monkeypatch.setattr(compile_time, "_in_new_process", run)
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    config = LibraryConfig("odebench", "dopri5", "forward", "compiled_solve")
    with compiler_cache(tmp_path):
        assert compile_seconds(with_batch(CASES["tiny"], 7), config, 1e-5) == (30.0, 15.0)
    assert seen == [(str(tmp_path), "tiny", 7)] * 2
    assert CACHE_VARIABLE not in os.environ
    monkeypatch.setenv(CACHE_VARIABLE, "before")
    with compiler_cache(tmp_path):
        assert os.environ[CACHE_VARIABLE] == str(tmp_path)
    assert os.environ[CACHE_VARIABLE] == "before"


def test_a_new_process_solves_the_case():
    config = LibraryConfig("odebench", "dopri5", "backprop", "")
    assert abs(compile_time._in_new_process("tiny", 3, config, 1e-2)) < 60
