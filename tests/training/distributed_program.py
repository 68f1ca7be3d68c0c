"""Trainings with two processes and injected faults, for test_distributed.py; forked, so that torch is imported
once.

    python distributed_program.py FOLDER

Each training writes its record to FOLDER/NAME and the output of rank R to FOLDER/NAME.R.txt; codes.json holds the
exit codes of the processes.
"""

import json
import math
import os
import signal
import socket
import sys
from pathlib import Path

import torch._dynamo  # noqa: F401 (else imported in each child)

from odebench.cli import main
from odebench.errors import Diverged
from odebench.models.series.latent_ode import LatentODE
from odebench.tasks.classification import ClassificationTask
from odebench.tasks.density import DensityTask
from odebench.tasks.time_series import TimeSeriesTask
from odebench.training import loop
from odebench.training.run import train_run  # noqa: F401

TINY = ["trainer.epochs=2", "trainer.log_every=1", "device=cpu", "gradient=backprop", "solver=rk4", "solver.steps=2"]
ODENET = [
    *TINY,
    "model.width=8",
    "model.groups=4",
    "data.train_limit=64",
    "data.validation=40",
    "trainer.batch_size=16",
]
CNF = [*TINY, "model=cnf", "data=two_moons", "data.samples=64", "data.validation=40", "data.test=40"]
CNF = [*CNF, "trainer.batch_size=16", "model.hidden=8", "optim.lr=0.01", "trainer.iterations=8"]
LATENT_ODE = [*TINY, "model=latent_ode", "data=periodic", "data.validation=40"]
LATENT_ODE += ["data.train_limit=64", "trainer.batch_size=16", "loss.samples=2", "loss.combine=logsumexp"]
FEW_SEEN = ["data.observed=0.03", "loss.consistency=1"]  # so that few series are compared, different ones on each rank
TOGETHER = ["solver=dopri5", "tol=1e-2", "gradient=adjoint", "solver.sync_steps=true", "trainer.iterations=4"]
# Each is trained with one process and with two.
PAIRS = {
    "odenet": ODENET,
    "cnf": CNF,
    "latent_ode": LATENT_ODE,
    "latent_ode_consistent": LATENT_ODE + FEW_SEEN,
    "odenet_synced": [w for w in ODENET if w not in TINY[-3:]] + TOGETHER,
    "cnf_synced": [w for w in CNF if w not in (*TINY[-3:], "trainer.iterations=8")] + TOGETHER,
}
NUM_RANKS = 2


def together(folder, overrides, fault=None):
    """Train with two processes; rank 1 calls fault() before its third step. Returns their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": NUM_RANKS, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    children = [
        fork(folder, overrides, {**world, "RANK": rank, "LOCAL_RANK": rank}, fault) for rank in range(NUM_RANKS)
    ]
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def fork(folder, overrides, environment, fault=None):
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        rank = environment.get("RANK", 0)
        os.environ.update({name: str(value) for name, value in environment.items()})
        with open(f"{folder}.{rank}.txt", "ab") as printed:
            os.dup2(printed.fileno(), 1)
            os.dup2(printed.fileno(), 2)
        if fault is not None and rank == 1:
            before_third_step(fault)
        code = main([*overrides, f"run_dir={folder}"] if overrides[0] == "train" else [*overrides, str(folder)])
    finally:
        sys.stdout.flush()
        os._exit(code)


def before_third_step(fault):
    train_step = loop.train_step

    def faulty_train_step(training, *rest):
        if training.progress.step == 2:
            fault()
        return train_step(training, *rest)

    loop.train_step = faulty_train_step


def loss_of_nan():
    loss = ClassificationTask.loss

    def broken(self, batch):
        found = loss(self, batch)
        return found._replace(value=found.value * math.nan)

    ClassificationTask.loss = broken


def failed_solve():
    def broken(self, batch):
        raise Diverged("solve failed: too many steps")

    ClassificationTask.loss = broken


def failed_measurement():
    measure_step = loop.measure_step

    def measured(*arguments):
        loss = ClassificationTask.loss
        loss_of_nan()
        try:
            return measure_step(*arguments)
        finally:
            ClassificationTask.loss = loss

    loop.measure_step = measured


def failed_forecast():
    def broken(self, *inputs, **more):
        raise Diverged("solve failed: too many steps")

    LatentODE.forward = broken


def train_all(folder):
    """Run all trainings; return their exit codes by name."""
    for task in (ClassificationTask, DensityTask, TimeSeriesTask):  # drawing takes longer than training
        task.figures = lambda self: {}
    codes, odenet, synced = {}, ["train", *ODENET], ["train", *PAIRS["odenet_synced"]]
    for name, overrides in PAIRS.items():
        alone = fork(folder / f"{name}_one", ["train", *overrides], {})
        codes[f"{name}_two"] = together(folder / f"{name}_two", ["train", *overrides])
        codes[f"{name}_one"] = [os.waitstatus_to_exitcode(os.waitpid(alone, 0)[1])]
    codes["stopped"] = together(folder / "stopped", odenet, lambda: os.kill(os.getpid(), signal.SIGTERM))
    codes["resumed"] = together(folder / "stopped", ["resume"])
    codes["nan"] = together(folder / "nan", synced, loss_of_nan)
    codes["diverged"] = together(folder / "diverged", odenet, failed_solve)
    codes["part_diverged"] = together(folder / "part_diverged", ["train", *LATENT_ODE], failed_forecast)
    codes["unmeasured"] = together(folder / "unmeasured", synced, failed_measurement)
    codes["lost"] = together(folder / "lost", odenet, lambda: os.kill(os.getpid(), signal.SIGKILL))
    codes["lost_synced"] = together(folder / "lost_synced", synced, lambda: os.kill(os.getpid(), signal.SIGKILL))
    codes["uneven"] = together(folder / "uneven", [*odenet, "trainer.batch_size=15"])
    return codes


if __name__ == "__main__":
    (Path(sys.argv[1]) / "codes.json").write_text(json.dumps(train_all(Path(sys.argv[1]))))
