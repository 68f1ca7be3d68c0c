"""Trajectories of MuJoCo's hopper, simulated after Rubanova et al. (2019), section 4.2."""

import hashlib
import importlib.metadata
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from odebench.data.cache import load_arrays, save_arrays
from odebench.data.root import data_root
from odebench.data.series import SeriesData
from odebench.data.series_loading import (
    Mode,
    assign_roles,
    hold_out_series,
    make_splits,
    series_from_arrays,
    target_start,
)
from odebench.errors import UsageError

NUM_RUNS, NUM_TEST = 10_000, 2_000
NUM_STEPS, WINDOW, DIM = 200, 100, 14
SIMULATION_SEED = 123
CHANNELS = tuple(f"{kind}{i}" for kind in ("position", "velocity") for i in range(DIM // 2))

log = logging.getLogger(__name__)


def hopper(
    *, root: str | None, mode: Mode, observed: float, validation: int, train_limit: int | None, random_state: int
) -> SeriesData:
    """10,000 hops of 200 steps, with 14 numbers per step: 7 positions and 7 velocities.

    dm_control's hopper (task stand) falls from a random posture without control: its first two positions are uniform
    in [0, 0.5], the others in [-2, 2], velocities in [-5, 5]. The first 8,000 runs are for training, the last 2,000
    for test. Each channel is shifted and scaled by its smallest and largest value in the first 8,000 runs: see
    `scale_values`. Step i has time i / 200.

    mode: "interpolation" takes a random window of 100 steps from each run, with times from 0 on; "extrapolation" takes
    all 200 steps. observed: see `make_splits`. random_state determines windows, observed points and validation. The
    runs are simulated once, in half a minute, and cached under the data root. Raises UsageError if there are neither
    cached runs nor a simulator.
    """
    runs, provenance = load_or_simulate(data_root(root) / "Hopper")
    num, num_train = len(runs), len(runs) - NUM_TEST
    low, high = runs[:num_train].min((0, 1)), runs[:num_train].max((0, 1))
    runs = (runs - low) / np.abs(high)  # as `scale_values` does
    random = np.random.RandomState(random_state)
    starts = random.randint(NUM_STEPS - WINDOW + 1, size=num)
    order = np.concatenate([np.arange(num_train, num), random.permutation(num_train)])
    length = WINDOW if mode == "interpolation" else NUM_STEPS
    if mode == "interpolation":
        runs = runs[np.arange(num)[:, None], starts[:, None] + np.arange(WINDOW)]
    times, span = np.arange(length) / NUM_STEPS, length / NUM_STEPS
    pool = series_from_arrays(np.full(num, length), np.tile(times, num), runs.reshape(-1, DIM))
    pool = assign_roles(pool, mode, span)
    splits = make_splits(pool, hold_out_series(order, NUM_TEST, validation, train_limit), observed, random_state)
    split = f"test: the last {NUM_TEST:,} runs, as published; validation: random, random_state {random_state}"
    return SeriesData(
        **splits,
        span=span,
        target_start=target_start(mode, span),
        channels=CHANNELS,
        provenance={**provenance, "split": split},
    )


def load_or_simulate(folder: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """All runs, float32 [N, 200, 14], and their provenance.

    Reads the runs from the cache in this folder; if there is none, simulates and caches them. Raises UsageError if they
    are not cached and the simulator is not installed.
    """
    path = folder / f"hopper-stand-{NUM_RUNS}x{NUM_STEPS}.npz"
    cached = load_arrays(path)
    if cached is None or set(cached) != {"runs", "simulator"} or cached["runs"].shape != (NUM_RUNS, NUM_STEPS, DIM):
        cached = {"runs": simulate(NUM_RUNS, path), "simulator": np.array(_simulator())}
        save_arrays(path, cached)
    runs = cached["runs"].astype(np.float32, copy=False)
    return runs, {
        "source": f"simulated by {cached['simulator']}: hopper of Rubanova, Chen, Duvenaud, arXiv:1907.03907 (2019)",
        "licence": "Apache-2.0 (dm_control, MuJoCo)",
        "folder": str(folder.absolute()),
        "files": {path.name: {"runs_sha256": hashlib.sha256(runs.data).hexdigest()}},
    }


def simulate(num: int, path: Path) -> np.ndarray:
    """The first ``num`` runs, float32 [num, 200, 14]; path: the missing cache file, for the error message."""
    os.environ.setdefault("MUJOCO_GL", "disable")  # no rendering, so no display is needed
    try:
        from dm_control import suite  # an extra, and a second to import
    except ImportError as error:
        raise UsageError(
            f'data=hopper needs {path}, or dm_control to simulate it: from the checkout, pip install -e ".[hopper]" '
            "(dm_control==1.0.50 mujoco==3.17.0)"
        ) from error
    log.info("simulating %s runs of the hopper, to be cached in %s", f"{num:,}", path)
    physics = suite.load("hopper", "stand").physics
    random = np.random.RandomState(SIMULATION_SEED)
    runs = np.empty((num, NUM_STEPS, DIM), dtype=np.float32)
    for run in runs:
        with physics.reset_context():
            physics.data.qpos[:2] = random.uniform(0, 0.5, size=2)
            physics.data.qpos[2:] = random.uniform(-2, 2, size=DIM // 2 - 2)
            physics.data.qvel[:] = random.uniform(-5, 5, size=DIM // 2)
        for step in run:
            step[: DIM // 2], step[DIM // 2 :] = physics.data.qpos, physics.data.qvel
            physics.step()
    return runs


def _simulator() -> str:
    return ", ".join(f"{package} {importlib.metadata.version(package)}" for package in ("dm_control", "mujoco"))
