"""Models, data and methods of a user's module."""

import sys

import pytest

from odebench.config.choices import options_of
from odebench.config.compose import compose
from odebench.config.files import CONFIGS
from odebench.config.plugins import known_names, lookup
from odebench.config.read import read_settings
from odebench.config.schema import PluginSettings
from odebench.errors import UsageError

MODULE = """
from odebench.ode.methods import METHODS as ours
from odebench.ode.methods.tableau import Tableau


class Wide:
    def __init__(self, in_channels, num_classes, width, depth=2):
        pass


class Anything:
    def __init__(self, in_channels, **options):
        pass


def noise(*, num, seed):
    pass


MODELS = {"wide": Wide, "anything": Anything, "odenet": Wide}
DATA = {"noise": noise}
METHODS = {"our_ralston": Tableau("our_ralston", "Ralston 1962", 2, (0.0, 2 / 3), ((), (2 / 3,)), (1 / 4, 3 / 4))}
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of an importable plugin module."""
    (tmp_path / "their_lab.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "their_lab"
    sys.modules.pop("their_lab", None)


@pytest.fixture
def configs(tmp_path):
    """The folder of the plugin's YAML files."""
    folder = tmp_path / "configs"
    for group in ("model", "data", "solver"):
        (folder / group).mkdir(parents=True)
    head = "# @package _global_\ntask: classification\nmodel:\n"
    (folder / "model" / "wide.yaml").write_text(f"{head}  name: wide\n  width: 7\n")
    (folder / "data" / "noise.yaml").write_text("name: noise\nnum: 512\n")
    ralston = (CONFIGS / "solver" / "rk4.yaml").read_text().replace("rk4", "our_ralston")
    (folder / "solver" / "our_ralston.yaml").write_text(ralston)
    return folder


def read(*overrides, config_dir=None):
    return read_settings(compose(["extensions=[their_lab]", *overrides], config_dir))


def test_built_in_names_come_before_those_of_plugins(module):
    builtin = {"odenet": "ours"}
    assert lookup("model", "odenet", builtin, [module]) == "ours"
    assert lookup("model", "wide", builtin, [module]).__name__ == "Wide"
    assert known_names("model", builtin, [module]) == ["odenet", "wide", "anything"]


def test_an_unknown_name_raises_an_error_with_the_nearest_name(module):
    with pytest.raises(UsageError, match=r"^unknown model wid; did you mean wide\? \(models: odenet, wide, any"):
        lookup("model", "wid", {"odenet": None}, [module])


def test_a_module_without_a_dict_of_a_kind_adds_no_names():
    assert known_names("data", {"mnist": None}, ["json"]) == ["mnist"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("MODELS = [1]", "extensions: broken_lab.MODELS must be a dict from name to model"),
        ("import not_installed", "extensions: broken_lab needs not_installed, which is not installed"),
    ],
    ids=["no dict", "missing import"],
)
def test_a_broken_module_raises_one_line(tmp_path, monkeypatch, text, line):
    (tmp_path / "broken_lab.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError) as caught:
        lookup("model", "wide", {}, ["broken_lab"])
    sys.modules.pop("broken_lab", None)
    assert str(caught.value) == line


@pytest.mark.parametrize("name", ["no_such_lab", "no.such.lab"])
def test_a_missing_module_raises_one_line(name):
    with pytest.raises(UsageError, match=f"^extensions: no module {name}; install its package"):
        lookup("model", "wide", {}, [name])


@pytest.mark.parametrize("name", ["../x", ".x", "", "a..b", "a.", "a\0b"])
def test_a_path_or_a_relative_name_is_no_modules_name(name):
    with pytest.raises(UsageError, match=r"^extensions: '.*' is no module name; write it as in Python's import"):
        lookup("model", "wide", {}, [name])


def test_an_error_inside_a_module_is_not_taken_for_a_wrong_name(tmp_path, monkeypatch):
    (tmp_path / "raising_lab.py").write_text("raise ValueError('from inside')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="from inside"):
        lookup("model", "wide", {}, ["raising_lab"])


def test_yaml_without_its_module_or_a_module_without_its_yaml_raises_an_error(module, configs):
    for word in ("model=wide", "data=noise", "solver=our_ralston"):
        group, _, name = word.partition("=")
        with pytest.raises(UsageError) as caught:
            read_settings(compose([word], configs))
        assert str(caught.value) == (
            f"{word}: its YAML file exists, but extensions=[] has no {group} of that name; "
            "add the module, as in extensions=[my_module]"
        )
        with pytest.raises(UsageError, match=rf"^unknown {group} {name}.*; a plugin's option needs --config-dir DIR, "):
            read(word)
        with pytest.raises(UsageError, match=r"extensions=\[json\] has no"):
            read_settings(compose([word, "extensions=[json]"], configs))


def test_a_plugins_model_data_and_method_can_be_chosen(module, configs):
    settings = read("model=wide", "data=noise", "solver=our_ralston", config_dir=configs)
    assert settings.model == PluginSettings("wide", {"width": 7})
    assert options_of(settings.data) == {"num": 512}
    assert (settings.solver.name, settings.solver.fixed) == ("our_ralston", True)
    assert settings.evaluation_solver == settings.solver


def test_a_plugins_settings_are_checked_against_the_signature(module, configs):
    (configs / "model" / "wide.yaml").write_text(
        "# @package _global_\nmodel:\n  name: wide\n  widht: 7\ntask: classification\n"
    )
    with pytest.raises(UsageError, match=r"^unknown setting model\.widht; did you mean model\.width\?$"):
        read("model=wide", config_dir=configs)
    (configs / "model" / "wide.yaml").write_text("# @package _global_\nmodel:\n  name: wide\ntask: classification\n")
    with pytest.raises(UsageError, match=r"^model\.width is missing, and wide needs it"):
        read("model=wide", config_dir=configs)


def test_a_signature_with_keyword_options_takes_any_setting(module, configs):
    (configs / "model" / "wide.yaml").write_text(
        "# @package _global_\nmodel:\n  name: anything\n  colour: red\ntask: classification\n"
    )
    assert read("model=wide", config_dir=configs).model.options == {"colour": "red"}


def test_a_plugins_model_has_an_ode_if_a_solver_is_chosen(module, configs):
    assert read("model=wide", config_dir=configs).has_ode
    settings = read("model=wide", "solver=none", "gradient=backprop", config_dir=configs)
    assert not settings.has_ode
    with pytest.raises(UsageError, match=r"^gradient=adjoint: wide has no ODE"):
        read("model=wide", "solver=none", config_dir=configs)


def test_a_plugins_method_without_step_size_control_needs_steps(module, configs):
    with pytest.raises(UsageError, match=r"^solver\.steps=null: our_ralston has no error estimate"):
        read("solver=our_ralston", "solver.steps=null", config_dir=configs)
