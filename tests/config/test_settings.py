"""The settings: every option composes and is valid, and every invalid value raises one line."""

import dataclasses
import pickle
import runpy
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from odebench.config.choices import options_of
from odebench.config.compose import compose
from odebench.config.files import CONFIGS, known_keys, options
from odebench.config.groups import PLURALS
from odebench.config.read import read_settings
from odebench.config.schema import CHOICES
from odebench.config.schema.solver import NO_SOLVER, SolverSettings
from odebench.config.settings import Settings, run_name
from odebench.config.warnings import probable_mistakes, without_effect
from odebench.errors import UsageError
from odebench.ode.methods import METHODS
from odebench.training.summary import describe_settings


def read(*overrides, config_dir=None):
    return read_settings(compose(overrides, config_dir))


def message(*overrides, config_dir=None):
    with pytest.raises(UsageError) as caught:
        read(*overrides, config_dir=config_dir)
    # An error carries the settings that it is about; none if an override cannot be parsed.
    line, about = str(caught.value), caught.value.settings
    assert "\n" not in line
    assert about[0].rpartition(".")[2] in line if about else line.startswith(("malformed setting", "--config-dir"))
    return line


MODEL_OF = {"classification": "odenet", "density": "cnf", "time_series": "latent_ode"}


def companions(group, name):
    """Overrides of other groups that an option needs."""
    if group == "loss":
        return [f"model={MODEL_OF[CHOICES['loss'][name].tasks[0]]}"]
    if group == "data":
        return [f"model={MODEL_OF[CHOICES['data'][name].tasks[0]]}"]
    return {"none": ["model=resnet"], "reversible": ["solver=alf"]}.get(name, [])


def every_option():
    for group in [group for group in PLURALS if group != "experiment"]:
        for name in options(group):
            extra = companions(group, name)
            yield pytest.param([f"{group}={name}", *extra], id=f"{group}={name}")


@pytest.mark.parametrize("overrides", list(every_option()))
def test_every_option_composes_and_is_valid(overrides):
    settings = read(*overrides)
    group, _, name = overrides[0].partition("=")
    if group != "trainer":
        assert getattr(settings, group).name == name


@pytest.mark.parametrize("name", options("experiment"))
def test_every_experiment_composes_with_each_of_its_budgets(name):
    budgets = read(f"experiment={name}").budgets
    assert budgets
    for budget in budgets:
        assert read(f"experiment={name}", f"budget={budget}").budget == budget


SCHEMA = {**CHOICES, "solver": dict.fromkeys([*METHODS, NO_SOLVER], SolverSettings)}


def test_every_group_has_a_schema():
    assert set(SCHEMA) == set(PLURALS) - {"experiment"}
    of_sweeps = {"cluster"}  # tested in tests/sweep
    assert set(PLURALS) | of_sweeps == {path.name for path in CONFIGS.iterdir() if path.is_dir()}


@pytest.mark.parametrize("group", SCHEMA)
def test_yaml_keys_are_the_fields_and_files_are_the_names(group):
    assert set(options(group)) == set(SCHEMA[group])
    for name, kind in SCHEMA[group].items():
        node = compose([f"{group}={name}"])[group]
        fields = {field.name for field in dataclasses.fields(kind)}
        if group == "solver":
            fields = fields - {"options"} | set(getattr(METHODS.get(name), "options", ()))
        assert set(node) == fields, name


def test_the_file_of_a_solver_is_what_the_script_writes_from_the_table_of_methods():
    script = runpy.run_path(str(CONFIGS.parent / "scripts" / "solver_options.py"))
    for name, method in METHODS.items():
        text = options("solver")[name].read_text(encoding="utf-8")
        assert script["option_text"](name, method, text) == text
    new = script["option_text"]("new", METHODS["rk4"])
    assert new == f"# {METHODS['rk4'].source}\ndefaults: [_fixed]\nname: new\n"


def test_top_level_keys_are_the_fields_of_settings():
    assert set(compose([])) == {field.name for field in dataclasses.fields(Settings)}


@pytest.mark.parametrize(
    "kind", [Settings, *dict.fromkeys(kind for group in SCHEMA.values() for kind in group.values())]
)
def test_the_schema_has_no_defaults(kind):
    for field in dataclasses.fields(kind):
        assert field.default is dataclasses.MISSING
        assert field.default_factory is dataclasses.MISSING


INVALID = {
    "trainer.objective=val/acuracy": "trainer.objective=val/acuracy: no such quantity; did you mean val/accuracy? "
    "(task classification has val/loss, val/accuracy, val/nfe)",
    "task=desity": "unknown task desity; did you mean density? (tasks: classification, density, time_series)",
    "task=density": "task=density: odenet is a model for task=classification; leave task out",
    "data=two_moons": "data=two_moons: model=odenet is for task classification; "
    "choose data from mnist, fashion_mnist, mnist5k",
    "loss=elbo": "loss=elbo: model=odenet is for task classification; choose loss from cross_entropy",
    "model=planar_nf dynamics.kinetic=0.1": "dynamics.kinetic=0.1: planar_nf solves no ODE; "
    "leave dynamics out, or choose a model with an ODE",
    "model=cnf loss=flow_matching dynamics=steer": "dynamics.steer=0.5: loss=flow_matching solves nothing in training; "
    "choose loss=maximum_likelihood",
    "model=cnf trainer.precision=bf16": "trainer.precision=bf16: only classification supports it; leave it out",
    "model=cnf trainer.compile=true": "trainer.compile=true: has no effect on cnf; "
    "choose solver.compile=true, which compiles field and solver",
    "model=planar_nf trainer.compile=true": "trainer.compile=true: has no effect on planar_nf; leave it out",
    "model=ffjord model.noise=redrawn": "model.noise=redrawn: must be rademacher or gaussian",
    "model.hiden=3": "unknown setting model.hiden; did you mean model.hidden?",
    "odel=odenet": "unknown setting odel; did you mean model?",
    "lr=0.1": "unknown setting lr; did you mean optim.lr?",
    "trainer.lr=0.1": "unknown setting trainer.lr; did you mean optim.lr?",
    "dataset=mnist": "unknown setting dataset; did you mean data?",
    "optim.learning_rate=0.1": "unknown setting optim.learning_rate; did you mean optim.lr?",
    "model.solver=rk4": "unknown setting model.solver; did you mean solver?",
    "solver.tol=1e-3": "unknown setting solver.tol; did you mean tol?",
    "epochs=3": "unknown setting epochs; did you mean trainer.epochs?",
    "steps=3": "unknown setting steps; did you mean solver.steps or gradient.steps?",
    "cluster.jobs=2": "cluster.jobs is a setting of odebench sweep; leave it out, or write odebench sweep",
    "cluster=slurm": "cluster is a setting of odebench sweep; leave it out, or write odebench sweep",
    "zzz=1": "unknown setting zzz; odebench train --cfg prints them all",
    "model.blocks=3": "model.blocks: the chosen model has no such setting; odebench train --cfg prints all",
    "tol=abc": "tol=abc: a number is needed, such as tol=1e-3",
    "tol=null": "tol=null: a number is needed, such as tol=1e-3",
    "tol=true": "tol=true: a number is needed, such as tol=1e-3",
    "tol=nan": "tol=nan: a number is needed, such as tol=1e-3",
    "tol=inf": "tol=inf: a number is needed, such as tol=1e-3",
    "tol=-1": "tol=-1: must be greater than 0",
    "tol=0": "tol=0: must be greater than 0",
    "seed=-1": "seed=-1: must be at least 0",
    "trainer.epochs=0": "trainer.epochs=0: must be at least 1",
    "trainer.epochs=2.5": "trainer.epochs=2.5: a whole number is needed, such as trainer.epochs=10",
    "trainer.epochs=true": "trainer.epochs=true: a whole number is needed, such as trainer.epochs=10",
    "trainer.epochs=null": "trainer.epochs=null: a whole number is needed, such as trainer.epochs=10",
    "trainer.compile=1": "trainer.compile=1: must be true or false",
    "trainer.compile=yes": "trainer.compile=yes: must be true or false",
    "trainer.precision=fp16": "trainer.precision=fp16: must be float32 or bf16",
    "trainer.average=1": "trainer.average=1: must be less than 1, or null",
    "trainer.max_minutes=0": "trainer.max_minutes=0: must be greater than 0, or null",
    "outputs=3": "outputs=3: text is needed; a number in quotes is text, as in \"outputs='1'\"",
    "extensions=a": "extensions=a: a list is needed, such as extensions=[my_module]",
    "optim=adam optim.betas=[0.9]": "optim.betas=[0.9]: 2 entries are needed",
    "optim=adam optim.betas.x=1": "optim.betas.x=1: set all of optim.betas at once",
    "optim=adam optim.betas=[0.9,1.0]": "optim.betas[1]=1.0: must be less than 1",
    "optim=sgd optim.momentum=0 optim.nesterov=true": "optim.nesterov=true: needs a momentum; "
    "set optim.momentum, such as optim.momentum=0.9",
    "model=odnet": "unknown model odnet; did you mean odenet? (odebench list models prints all)",
    "model=": "unknown model '' (odebench list models prints all)",
    "solver=dopri": "unknown solver dopri; did you mean dopri5? (odebench list solvers prints all)",
    "solver=_adaptive": "unknown solver _adaptive; did you mean adaptive_heun? (odebench list solvers prints all)",
    "solver.controller=p": "solver.controller=p: must be integral or pi or pid",
    "solver=alf solver.compile=true": "solver.compile=true: "
    "only steps of explicit Runge-Kutta methods compile, not those of alf; leave it out, or choose solver=dopri5",
    "solver.compile=whole": "solver.compile=whole: must be true or false, or step or solve",
    "solver.compile=solve gradient=reversible solver=alf": "solver.compile=solve: "
    "only steps of explicit Runge-Kutta methods compile, not those of alf; leave it out, or choose solver=dopri5",
    "solver.compile=solve gradient=adjoint gradient.method=gl4": "solver.compile=solve: "
    "only backward solves by explicit Runge-Kutta methods compile, not those by gl4; leave it out, or choose "
    "gradient.method=dopri5",
    "solver.compile=solve gradient=backprop solver.stepping=per_sample": "solver.compile=solve: "
    "a compiled solve has no solver.stepping=per_sample; choose solver.stepping=shared, or leave compile out",
    "solver.compile=solve gradient=backprop solver.sync_steps=true": "solver.compile=solve: "
    "a compiled solve has no group of processes; leave it out, or choose solver.compile=step",
    "solver.compile_math=quick": "solver.compile_math=quick: must be exact or fast",
    "solver.compile_math=fast solver.compile=step": "solver.compile_math=fast: "
    "only whole solves are compiled with other math; leave it out, or choose solver.compile=solve",
    "solver.compile=solve dynamics=rnode": "solver.compile=solve: "
    "torch cannot compile the derivatives of the field for dynamics.jacobian=0.01 inside a loop; leave either out",
    "model=ffjord solver.compile=solve dynamics=taynode": "solver.compile=solve: "
    "torch cannot compile the derivatives of the field for dynamics.taylor=0.01 inside a loop; leave either out",
    "solver.compile=true solver.stepping=per_sample": "solver.compile=true: "
    "solver.stepping=per_sample has no compiled step; leave it out, or choose solver.stepping=shared",
    "gradient=adjoint solver.stepping=per_sample": "solver.stepping=per_sample: "
    "has no gradient=adjoint; choose gradient=backprop or gradient=checkpoint, or leave it out",
    "solver=adams gradient=backprop solver.stepping=per_sample": "solver.stepping=per_sample: "
    "adams is no explicit Runge-Kutta method; leave it out, or choose solver=dopri5",
    "solver=vode_adams gradient=backprop": "gradient=backprop: autograd cannot differentiate "
    "through SciPy's vode_adams; choose gradient=adjoint, or another method, such as solver=adams",
    "solver=scipy_bdf solver.steps=5": "solver.steps=5: "
    "scipy_bdf chooses its steps by their error; leave it out, or choose solver=implicit_adams",
    "gradient=adjoint gradient.method=rk4": "gradient.method=rk4: "
    "rk4 has no error estimate to choose its steps by; give gradient.steps=20, say",
    "gradient=adjoint gradient.method=adams gradient.steps=5": "gradient.steps=5: "
    "the backward solve by adams chooses its steps by their error; choose gradient.method=implicit_adams",
    "gradient=checkpoint gradient.keep=graphs solver.compile=true": "gradient.keep=graphs: "
    "a compiled step has no graphs of its own; leave either out",
    "eval_solver=scipy_rk45 gradient=checkpoint": "gradient=checkpoint: "
    "autograd cannot differentiate through SciPy's scipy_rk45; "
    "choose gradient=adjoint, or another method, such as solver=adams",
    "solver.stop_at_times=true solver.stepping=per_sample": "solver.stop_at_times=true: "
    "solver.stepping=per_sample has no step_t; leave it out, or choose solver.stepping=shared",
    "solver=kvaerno5 solver.sync_steps=true": "solver.sync_steps=true: "
    "solver=kvaerno5 is no explicit Runge-Kutta method; leave it out, or choose solver=dopri5",
    "gradient=adjoint gradient.method=kvaerno5 solver.sync_steps=true": "solver.sync_steps=true: "
    "gradient.method=kvaerno5 is no explicit Runge-Kutta method; leave it out, or choose gradient.method=dopri5",
    "gradient=backprop solver.stepping=per_sample solver.sync_steps=true": "solver.sync_steps=true: "
    "solver.stepping=per_sample gives each process its own steps; leave either out",
    "gradient=adjoint gradient.norm=full solver.sync_steps=true": "solver.sync_steps=true: "
    "gradient.norm=full gives each process its own steps; leave either out",
    "dynamics=steer dynamics.steer=0.25 solver.sync_steps=true": "solver.sync_steps=true: "
    "dynamics.steer=0.25 gives each process its own steps; leave either out",
    "model=ode_rnn model.encoder_solver=null solver.sync_steps=true": "solver.sync_steps=true: "
    "model.encoder_solver=null gives each process its own steps; leave either out",
    "name=": "name='': one line of text is needed, such as name=baseline",
    "name=1": "name=1: text is needed; a number in quotes is text, as in \"name='1'\", or null",
    "tags=baseline": "tags=baseline: a list is needed, such as tags=[baseline]",
    "tags=a,b": 'tags=a,b: write them as a list, as in "tags=[a,b]"',
    "notes=a,b": "notes=a,b: text with a comma needs quotes, as in \"notes='a,b'\"",
    "tags=[lr=1]": "malformed setting 'tags=[lr=1]': put the value into quotes, as in \"tags='[lr=1]'\"",
    "tags=['lr=1']": "tags=[lr=1]: 'lr=1' is no tag; "
    "a tag is one word of letters, digits and _ . : / + -, such as tags=[baseline,lr_0.1]",
    "solver.min_step=0": "solver.min_step=0: must be greater than 0, or null",
    "solver=alf solver.damping=2": "solver=alf: damping must lie above 0.5 and at most at 1, got 2.0",
    "solver=alf solver.damping=a": "solver.damping=a: a number is needed, such as solver.damping=0.5",
    "solver.damping=0.9": "solver.damping: the chosen solver has no such setting; odebench train --cfg prints all",
    "gradient=checkpoint gradient.checkpoints=0": "gradient.checkpoints=0: must be at least 1, or null",
    "gradient=checkpoint gradient.checkpoints=2 gradient.keep=graphs": "gradient.keep=graphs: nothing is recomputed; "
    "leave checkpoints and recompute out",
    "gradient=adjoint gradient.method=dopri": "unknown gradient.method dopri; did you mean dopri5? "
    "(odebench list solvers prints all)",
    "model=latent_ode model.encoder_solver=eule": "unknown model.encoder_solver eule; did you mean euler? "
    "(odebench list solvers prints all)",
    "model=latent_ode model.encoder_solver=kvaerno5": "model.encoder_solver=kvaerno5: "
    "must be an explicit Runge-Kutta method, such as euler, rk4 or dopri5",
    "gradient=reversible": "gradient=reversible: the steps of dopri5 cannot be undone; "
    "choose gradient=checkpoint, or a reversible method: alf, reversible_heun, reversible_midpoint, reversible_rk4, "
    "reversible_bosh3, reversible_dopri5, reversible_tsit5",
    "gradient=adjont": "unknown gradient adjont; did you mean adjoint? "
    "(gradients: adjoint, backprop, checkpoint, interpolated_adjoint, reversible)",
    "data=mnits": "unknown data mnits; did you mean mnist? (odebench list data prints all)",
    "optim=adma": "unknown optim adma; did you mean adamax? (optim: adam, adamax, adamw, rmsprop, sgd)",
    "schedule=step": "unknown schedule step; did you mean steps? "
    "(schedules: constant, cosine, exponential, one_cycle, steps)",
    "experiment=paper/mnist_odent": "unknown experiment paper/mnist_odent; did you mean paper/mnist_odenet? "
    "(odebench list experiments prints all)",
    "model.name=mlp": "model.name=mlp: write model=mlp, which also sets its other settings",
    "solver.name=rk5": "unknown solver rk5; did you mean rk4? (odebench list solvers prints all)",
    "tol": "malformed setting 'tol': write KEY=VALUE, such as tol=1e-3",
    "=3": "malformed setting '=3': write one key, one =, one value, such as tol=1e-3",
    "tol==1": "malformed setting 'tol==1': write one key, one =, one value, such as tol=1e-3",
    "run_dir=a:[b": "malformed setting 'run_dir=a:[b': put the value into quotes, as in \"run_dir='a:[b'\"",
    "tol=1e-2,1e-3": "tol=1e-2,1e-3: several values need -m (a sweep)",
    "seed=range(0,5,0)": "seed=range(0,5,0): a step of 0 never ends; give another one, as in range(0,5,1)",
    "+foo=1": "+foo=1: settings cannot be added; write KEY=VALUE without the plus",
    "++tol=1": "++tol=1: settings cannot be added; write KEY=VALUE without the plus",
    "~tol": "~tol: settings cannot be removed; many can be null, as in KEY=null",
    "model@x=odenet": "model@x=odenet: packages (@) cannot be chosen; write GROUP=OPTION",
    "config_dir=x": "config_dir=x: write --config-dir DIR",
    "hydra.verbose=true": "hydra.verbose=true: has no effect; leave it out",
    "hydra.job.chdir=true": "hydra.job.chdir=true: has no effect; leave it out",
    "hydra/launcher=basic": "hydra/launcher=basic: has no effect without -m (a sweep); leave it out, or add -m",
    "solver=rk4 solver.steps=null": "solver.steps=null: rk4 has no error estimate to choose its steps by; "
    "give solver.steps=20 or solver.step_size=0.05, say",
    "solver=rk4 solver.step_size=0.1": "solver.steps=20 and solver.step_size=0.1: set either to null",
    "solver=rk4 solver.steps=20000": "solver.steps=20000: must be at most solver.max_steps=10000",
    "solver.rtol=null solver.atol=null": "solver.rtol=null and solver.atol=null: "
    "adaptive steps need a tolerance; set either, or set solver.steps",
    "solver.first_step=cold": "solver.first_step=cold: a number is needed, "
    "such as solver.first_step=0.5, or warm or null",
    "solver.first_step=-1": "solver.first_step=-1: must be greater than 0, or warm or null",
    "solver=none": "solver=none: odenet solves an ODE; choose a solver, such as solver=dopri5",
    "eval_solver=none": "eval_solver=none: odenet solves an ODE; choose a solver, such as eval_solver=dopri5",
    "eval_solver=dopr": "unknown eval_solver dopr; did you mean dopri5? (odebench list solvers prints all)",
    "eval_tol=0": "eval_tol=0: must be greater than 0, or null",
    "model=resnet gradient=adjoint": "gradient=adjoint: resnet has no ODE; "
    "choose gradient=backprop, or a model with an ODE (odenet, rknet, cnf, ffjord, latent_ode, ode_rnn)",
    "model=mlp solver=rk4": "solver=rk4: mlp has no ODE; "
    "choose solver=none, or a model with an ODE (odenet, rknet, cnf, ffjord, latent_ode, ode_rnn)",
    "model=mlp eval_solver=rk4": "eval_solver=rk4: mlp has no ODE; leave eval_solver out",
    "gradient=backprop gradient.rtol=1e-3": "gradient.rtol: the chosen gradient has no such setting; "
    "odebench train --cfg prints all",
    "schedule=steps schedule.milestones=[3,2]": "schedule.milestones=[3,2]: must increase",
    "schedule=steps schedule.milestones=[2,2]": "schedule.milestones=[2,2]: must increase",
    "schedule=steps schedule.milestones=[0,2]": "schedule.milestones[0]=0: must be at least 1",
    "schedule=cosine schedule.warmup_epochs=11": "schedule.warmup_epochs=11.0: must be at most trainer.epochs=9",
    "model.width=30": "model.width=30: must be a multiple of model.groups=32; change either",
    "device=gpu": "device=gpu: must be auto, cpu, cuda or cuda:N, such as cuda:0",
    "device=cuda:x": "device=cuda:x: must be auto, cpu, cuda or cuda:N, such as cuda:0",
    "budget=small": "budget=small: only experiments have budgets; choose one with experiment=NAME",
    "experiment=paper/mnist_mlp budget=short": "unknown budget short (budgets: full, small, tiny)",
    "data.train_limit=10": "data.train_limit=10: must be at least trainer.batch_size=64",
    "extensions=[nothing.here]": "extensions: no module nothing.here; "
    "install its package, or put its folder on PYTHONPATH",
}


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ("optim.betas=[0.9,2]", ("optim.betas",)),
        ("solver.steps=2 solver.step_size=0.1", ("solver.steps", "solver.step_size")),
        ("solver=alf solver.damping=2", ("solver", "solver.damping")),
        ("gradient=reversible", ("gradient", "solver")),
        ("model=mlp model.width=3", ("model.width", "model")),
        ("model.hiden=3", ("model.hiden",)),
        ("solver=dopri55", ("solver",)),
        ("loss=elbo", ("loss", "model")),
    ],
)
def test_an_error_carries_the_settings_that_it_is_about(words, settings):
    with pytest.raises(UsageError) as caught:
        read(*words.split())
    assert caught.value.settings == settings
    copy = pickle.loads(pickle.dumps(caught.value))  # as a launcher does between processes
    assert (str(copy), copy.settings) == (str(caught.value), settings)


@pytest.mark.parametrize("overrides", INVALID)
def test_an_invalid_setting_raises_one_line_with_a_remedy(overrides):
    assert message(*overrides.split(" ")) == INVALID[overrides]


def test_values_have_their_types():
    settings = read("optim=adam", "solver.first_step=1", "schedule=steps", "trainer.threads=2")
    assert settings.optim.lr == 3e-3
    assert type(settings.optim.lr) is float
    assert settings.optim.betas == (0.9, 0.999)
    assert type(settings.solver.first_step) is float
    assert settings.schedule.milestones == (60, 100, 140)
    assert settings.trainer.threads == 2
    assert settings.extensions == ()


def test_tol_sets_both_tolerances_and_solver_rtol_still_wins():
    assert read("tol=1e-5").solver.rtol == read("tol=1e-5").solver.atol == 1e-5
    settings = read("tol=1e-5", "solver.rtol=1e-2")
    assert (settings.solver.rtol, settings.solver.atol) == (1e-2, 1e-5)


def test_the_command_line_wins_over_the_model_and_the_model_over_the_defaults():
    assert read().gradient.name == "adjoint"
    assert read("model=rknet").gradient.name == "backprop"
    assert read("model=rknet", "gradient=adjoint").gradient.name == "adjoint"
    assert read("gradient=adjoint", "model=rknet").gradient.name == "adjoint"
    assert read("model=resnet").solver.name == "none"


def test_the_command_line_wins_over_the_experiment():
    settings = read("experiment=paper/mnist_odenet", "data=mnist5k", "trainer.epochs=2")
    assert (settings.data.name, settings.trainer.epochs) == ("mnist5k", 2)
    assert settings.schedule.milestones == (60, 100, 140)
    assert read("experiment=paper/mnist_odenet", "model=rknet").gradient.name == "backprop"


def test_a_budget_selects_values_of_the_experiment():
    full, small = (read("experiment=paper/mnist_odenet", f"budget={name}") for name in ("full", "small"))
    assert (full.trainer.epochs, full.schedule.milestones) == (160, (60, 100, 140))
    assert (small.trainer.epochs, small.schedule.milestones) == (16, (6, 10, 14))


@pytest.mark.parametrize("experiment", ["ffjord/mnist", "rnode/mnist"])
def test_the_small_budget_of_an_image_flow_is_an_hour_at_most(experiment):
    full, small = (read(f"experiment={experiment}", f"budget={name}") for name in ("full", "small"))
    assert (full.trainer.iterations, full.trainer.epochs, full.data.validation) == (None, 100, 5000)
    assert (small.trainer.epochs, small.trainer.max_minutes, small.trainer.log_every) == (1, 60, 1)
    assert small.data.validation == 1000


def test_run_name():
    assert run_name(read()) == "odenet_dopri5"
    assert run_name(read("model=resnet")) == "resnet"


def test_options_of_a_choice_are_its_keys_without_the_name():
    assert options_of(read().model) == {"width": 64, "groups": 32, "end_time": 1.0, "augment": 0, "second_order": False}


def test_the_evaluation_solver_is_the_training_solver_by_default():
    settings = read("solver=rk4")
    assert settings.evaluation_solver == settings.solver


def test_eval_tol_reaches_the_evaluation_solver_alone():
    settings = read("eval_tol=1e-6")
    assert (settings.evaluation_solver.rtol, settings.evaluation_solver.atol) == (1e-6, 1e-6)
    assert settings.solver.rtol == 1e-3


def test_eval_solver_comes_from_its_file_at_eval_tol_or_tol():
    settings = read("solver=rk4", "eval_solver=dopri5", "tol=1e-4")
    assert settings.evaluation_solver == read("tol=1e-4", "solver.first_step=null").solver
    assert read("solver=rk4", "eval_solver=dopri5", "eval_tol=1e-6").evaluation_solver.rtol == 1e-6


def test_a_warm_first_step_is_not_for_evaluation():
    settings = read("solver.first_step=warm")
    assert settings.solver.first_step == "warm"
    assert settings.evaluation_solver.first_step is None


def test_probable_mistakes_give_warnings():
    assert probable_mistakes(read()) == []
    assert probable_mistakes(read("trainer.precision=bf16")) == []
    (line,) = probable_mistakes(read("trainer.precision=bf16", "tol=1e-4"))
    assert line.startswith("trainer.precision=bf16 with a tolerance of 0.0001")
    (line,) = probable_mistakes(read("solver=rk4", "eval_tol=1e-4"))
    assert line == "eval_tol=0.0001 has no effect: rk4 has fixed steps"
    tolerances = ["gradient=adjoint", "gradient.rtol=1e-5", "gradient.atol=1e-6"]
    assert probable_mistakes(read(*tolerances)) == []
    for words in (["solver=rk4", "gradient.method=dopri5"], ["solver.step_size=0.1"], ["gradient.steps=8"]):
        assert probable_mistakes(read(*tolerances, *words)) == [
            "gradient.rtol=1e-05 has no effect: the backward steps are fixed; set it to null",
            "gradient.atol=1e-06 has no effect: the backward steps are fixed; set it to null",
        ]
    words = ["model=ffjord", "loss=flow_matching"]
    assert probable_mistakes(read(*words, "model.train_time=false")) == []
    (line,) = probable_mistakes(read(*words))
    assert line.startswith("model.train_time=true has no effect")
    assert probable_mistakes(read("model=ffjord", "model.trace=hutchinson", "model.noise=gaussian")) == []
    (line,) = probable_mistakes(read("model=ffjord", "model.noise=gaussian"))
    assert line.startswith("model.noise=gaussian has no effect")
    assert probable_mistakes(read("experiment=paper/latent_ode_spirals")) == []
    lines = probable_mistakes(read("experiment=paper/latent_ode_spirals", "model.encoder=ode_rnn"))
    assert [line.partition("=")[0] for line in lines] == ["model.value_unit", "model.gap_unit"]


@pytest.fixture
def saved(tmp_path):
    """The settings of a run as they come back from its settings.yaml."""
    OmegaConf.save(compose(["eval_solver=rk4", "eval_tol=1e-2", "model.width=32"]), tmp_path / "settings.yaml")
    return OmegaConf.load(tmp_path / "settings.yaml")


def test_overrides_without_effect_are_named():
    tol = "tol=1e-3 has no effect: rk4 has fixed steps; solver.steps is their number"
    for overrides, expected in {
        ("trainer.epochs=3",): [],
        ("trainer.iterations=3",): [],
        ("trainer.epochs=3", "trainer.iterations=4"): ["trainer.epochs=3 has no effect: trainer.iterations=4 is set"],
        ("solver=rk4",): [],
        ("solver=rk4", "tol=1e-3"): [tol],
        ("solver=rk4", "solver.rtol=1e-3"): [f"solver.r{tol}"],
        ("solver=rk4", "tol=1e-3", "eval_solver=dopri5"): [],
        ("model=mlp", "tol=1e-3"): ["tol=1e-3 has no effect: model=mlp has no ODE"],
        ("model=mlp", "solver.steps=5"): ["solver.steps=5 has no effect: model=mlp has no ODE"],
        ("tol=1e-3", "solver.rtol=1e-4", "solver.atol=1e-4"): [
            "tol=1e-3 has no effect: solver.rtol and solver.atol are set"
        ],
        ("solver=rk4", "solver.controller=pi"): ["solver.controller=pi has no effect: rk4 has fixed steps"],
        ("model=ode_rnn",): [],
        ("model=ode_rnn", "solver=rk4", "gradient=adjoint"): [
            f"{override} has no effect: model.encoder_solver=euler solves the only ODE; set it to null"
            for override in ("solver=rk4", "gradient=adjoint")
        ],
        ("model=ode_rnn", "model.encoder_solver=null", "tol=1e-4"): [],
        ("model=latent_ode", "model.encoder_step=0.1"): [
            "model.encoder_step=0.1 has no effect: it is for model.encoder=ode_rnn, not rnn"
        ],
        ("model=latent_ode", "model.encoder=ode_rnn", "model.encoder_step=0.1"): [],
        ("model=latent_ode", "loss.event_weight=2"): ["loss.event_weight=2 has no effect: model.events=false"],
        ("model=rnn", "model.time_gap=false", "model.gap_unit=2"): [
            "model.gap_unit=2 has no effect: model.time_gap=false"
        ],
        ("model=latent_ode", "loss.kl_growth=0.9", "loss.kl_wait_epochs=3"): [],
        ("model=latent_ode", "loss.kl_growth=0.9"): [
            "loss.kl_growth=0.9 has no effect: with loss.kl_wait_epochs=null the weight of the divergence is always 1"
        ],
        ("dynamics.taylor_order=2",): ["dynamics.taylor_order=2 has no effect: dynamics.taylor=0"],
        ("model=ffjord", "loss=flow_matching", "gradient=checkpoint"): [
            "gradient=checkpoint has no effect: loss=flow_matching solves nothing in training"
        ],
    }.items():
        assert without_effect(read(*overrides), overrides) == expected, overrides


def test_saved_settings_read_back_the_same(saved):
    assert read_settings(saved) == read("eval_solver=rk4", "eval_tol=1e-2", "model.width=32")


def test_a_saved_tolerance_can_be_overridden_through_tol(saved):
    new = read_settings(compose(["tol=1e-5", "eval_solver=null"], saved=saved))
    assert new.solver.rtol == new.evaluation_solver.rtol == 1e-5
    assert new.model.width == 32
    assert read_settings(saved).solver.rtol == 1e-3, "the saved settings changed"


def test_a_new_solver_replaces_both_saved_solvers(saved):
    new = read_settings(compose(["solver.steps=3", "solver=euler"], saved=saved))
    assert new.solver == new.evaluation_solver == read("solver=euler", "solver.steps=3").solver


def test_new_options_replace_the_saved_groups(saved):
    new = read_settings(compose(["data=mnist", "gradient=backprop", "model=resnet", "solver=none"], saved=saved))
    assert (new.data, new.gradient.name) == (read("data=mnist").data, "backprop")
    assert new.model == read("model=resnet").model


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("solver=rk5", "unknown solver rk5; did you mean rk4? "),
        ("solver.stps=3", "unknown setting solver.stps; did you mean solver.steps?"),
        ("modl=odenet", "unknown setting modl; did you mean model?"),
        (
            "experiment=paper/mnist_mlp",
            "experiment=paper/mnist_mlp: the experiment of a finished run cannot change",
        ),
        ("model=cnf", "model=cnf: is for task density, the run for classification; choose another model"),
        ("cluster.jobs=2", "cluster.jobs is a setting of odebench sweep"),
        ("hydra/launcher=basic", "unknown setting hydra/launcher"),
        ("tol=1,2", "tol=1,2: give one value only"),
        ("trainer.epochs=3", "trainer.epochs=3: has no effect after the training; leave it out"),
        ("optim.lr=1", "optim.lr=1: has no effect after the training; leave it out"),
        ("trainer.figures=false", "trainer.figures=false: has no effect after the training; leave it out"),
        ("trainer.max_nfe=1", "trainer.max_nfe=1: has no effect after the training; leave it out"),
        ("trainer.validate_every=2", "trainer.validate_every=2: has no effect after the training; leave it out"),
        ("tol", "malformed setting 'tol'"),
    ],
)
def test_an_invalid_override_of_saved_settings_raises_one_line(saved, override, line):
    with pytest.raises(UsageError) as caught:
        compose([override], saved=saved)
    assert str(caught.value).startswith(line)


def test_resolvers_are_frozen_when_composed_and_refused_when_read(monkeypatch):
    monkeypatch.setenv("SOMEWHERE", "/data")
    config = compose(["data.root=${oc.env:SOMEWHERE}/images"])
    assert OmegaConf.to_container(config, resolve=False)["data"]["root"] == "/data/images"
    assert config._get_node("solver")._get_node("rtol")._value() == "${tol}"
    config.data.root = "${oc.env:SOMEWHERE}"
    with pytest.raises(UsageError, match="resolvers are not read from saved settings"):
        read_settings(config)


@pytest.fixture
def user_configs(tmp_path):
    """A user's folder, whose name has characters that must be quoted for Hydra."""
    folder = tmp_path / "my configs, 'a=b'"
    (folder / "solver").mkdir(parents=True)
    (folder / "experiment").mkdir()
    coarse = (CONFIGS / "solver" / "rk4.yaml").read_text() + "steps: 4\n"
    (folder / "solver" / "coarse.yaml").write_text(coarse)
    (folder / "experiment" / "quick.yaml").write_text("# @package _global_\n# Quick\ntrainer:\n  epochs: 1\n")
    return folder


def test_a_users_folder_adds_options(user_configs):
    settings = read("solver=coarse", "experiment=quick", config_dir=user_configs)
    assert (settings.solver.name, settings.solver.steps, settings.trainer.epochs) == ("rk4", 4, 1)
    assert "solver coarse; did you" not in message("solver=corse")
    assert "did you mean coarse?" in message("solver=corse", config_dir=user_configs)


def test_a_users_folder_is_saved_for_evaluation(user_configs):
    config = compose(["eval_solver=coarse"], user_configs)
    assert read_settings(config).evaluation_solver.steps == 4
    assert read_settings(compose(["solver=coarse"], saved=config)).solver.steps == 4


def test_a_missing_users_folder_raises_an_error(tmp_path):
    assert message(config_dir=tmp_path / "no") == f"--config-dir {tmp_path / 'no'}: no such folder"


def test_an_option_file_must_name_every_setting(user_configs):
    path = user_configs / "solver" / "coarse.yaml"
    path.write_text("name: rk4\nrtol: null\natol: null\nsteps: 4\nstep_size: null\nfirst_step: null\n")
    line = message("solver=coarse", config_dir=user_configs)
    assert line == "solver.min_step is missing; add it to the YAML file of the chosen option"


def test_known_keys_contain_every_key_of_a_composed_config():
    keys = known_keys()
    for overrides in ([], ["model=mlp", "optim=adam", "schedule=steps"]):
        for group, node in OmegaConf.to_container(compose(overrides)).items():
            expected = [f"{group}.{key}" for key in node] if group in PLURALS else [group]
            assert set(expected) <= set(keys)


def test_reading_settings_imports_no_torch():
    code = (
        "import sys; from odebench.config.compose import compose; from odebench.config.read import read_settings; "
        "read_settings(compose(['experiment=paper/mnist_odenet'])).evaluation_solver; "
        "assert not {'torch', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_ode_rnn_is_named_after_its_solver_and_refuses_regularised_dynamics():
    assert run_name(read("model=ode_rnn")) == "ode_rnn_euler"
    assert describe_settings(read("model=ode_rnn")) == "ode_rnn, euler, steps of 0.02 of the span, backprop"
    assert run_name(read("model=ode_rnn", "model.encoder_solver=null")) == "ode_rnn_dopri5"
    assert run_name(read("model=latent_ode", "model.encoder=ode_rnn")) == "latent_ode_dopri5"
    for words in (["model=ode_rnn"], ["model=latent_ode", "model.encoder=ode_rnn"]):
        with pytest.raises(UsageError, match=r"dynamics.kinetic=0\.1: not possible with an ODE-RNN"):
            read(*words, "dynamics.kinetic=0.1")
    assert read("model=latent_ode", "dynamics.kinetic=0.1").dynamics.kinetic == 0.1
