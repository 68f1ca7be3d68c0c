"""``odebench train``."""

import argparse
import os
import sys

from odebench.cli.options import add_config_dir, add_settings
from odebench.errors import UsageError

SUMMARY = "train a model"
HELP = """\
Train a model and keep a record of it in a folder under outputs/.

Settings are written KEY=VALUE, in any order. Choices: model, solver, gradient, data, optim, schedule,
experiment (`odebench list models`, `odebench list solvers`, ...). Single settings: tol, seed, device,
trainer.epochs, solver.rtol, optim.lr, ... (`odebench train --cfg` prints all of them).

examples:
  odebench train                                          an ODE-Net on 5,000 MNIST images, no download
  odebench train model=resnet trainer.epochs=3
  odebench train solver=rk4 solver.steps=8 eval_solver=dopri5 eval_tol=1e-5
  odebench train experiment=paper/cnf_density_matching data=potential_1 budget=small
  odebench train -m solver=dopri5,tsit5 tol=1e-2,1e-3     four runs, as with odebench sweep
  odebench train model=rknet tol=1e-4 --cfg               print the settings, train nothing"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    add_settings(parser, "settings, such as model=odenet tol=1e-3")
    parser.add_argument(
        "-m", "--multirun", action="store_true", help="run a sweep: one run for each combination of the values a,b"
    )
    parser.add_argument("--cfg", action="store_true", help="print the composed settings as YAML and stop")
    add_config_dir(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    if arguments.cfg and {"hydra", "all"} & set(arguments.overrides):
        raise UsageError("--cfg prints the settings of a run, without those of Hydra: write --cfg, or --cfg job")
    if arguments.cfg and "job" in arguments.overrides:  # Hydra's --cfg job
        arguments.overrides.remove("job")
    if arguments.multirun:
        return _multirun(arguments)
    from odebench.config.compose import compose
    from odebench.config.read import read_settings

    config = compose(arguments.overrides, arguments.config_dir)
    if arguments.cfg:
        from omegaconf import OmegaConf

        sys.stdout.write(OmegaConf.to_yaml(config))
        read_settings(config)
        return 0
    from odebench.training.preflight import check_folders

    settings = read_settings(config)
    check_folders(settings)  # reports a wrong setting before torch is imported
    from odebench.training.run import train_run

    return train_run(config, arguments.overrides, settings).exit_code


def _multirun(arguments: argparse.Namespace) -> int:
    from odebench.sweep.multirun import run_multirun

    if arguments.cfg:
        raise UsageError("--cfg prints the settings of one run; leave -m out")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise UsageError("-m: torchrun's processes train one model together; leave -m out, or start without torchrun")
    return run_multirun(arguments.overrides, arguments.config_dir)
