import pytest

from odebench.config.files import options, read_yaml
from odebench.config.groups import PLURALS
from odebench.errors import UsageError
from odebench.sweep.expand import expand, expand_valid, merge_grids, read_grids
from odebench.sweep.folder import load_sweep


def errors(function, *arguments):
    with pytest.raises(UsageError) as caught:
        function(*arguments)
    return str(caught.value).splitlines()


def test_all_combinations_in_the_order_of_hydras_multirun():
    assert expand([["solver=dopri5,tsit5", "seed=range(0,2)", "tol=1e-3"]]) == [
        ["solver=dopri5", "seed=0", "tol=1e-3"],
        ["solver=dopri5", "seed=1", "tol=1e-3"],
        ["solver=tsit5", "seed=0", "tol=1e-3"],
        ["solver=tsit5", "seed=1", "tol=1e-3"],
    ]


@pytest.mark.parametrize(
    ("argument", "jobs"),
    [
        ("tol=choice(1e-2,1e-3)", ["tol=0.01", "tol=0.001"]),
        ("tol=range(0.5,2,0.5)", ["tol=0.5", "tol=1.0", "tol=1.5"]),
        ("schedule.milestones=[1,2],[3]", ["schedule.milestones=[1,2]", "schedule.milestones=[3]"]),
        ("data.root='a,b','it\\'s'", ["data.root='a,b'", "data.root='it\\'s'"]),
        ("device=cuda:0", ["device=cuda:0"]),
    ],
)
def test_values_in_hydras_grammar(argument, jobs):
    assert expand([[argument]]) == [[job] for job in jobs]


def test_glob_chooses_among_the_options_of_a_group():
    jobs = expand([["experiment=glob(paper/mnist_*net,exclude=*resnet)"]])
    fitting = [name for name in options("experiment") if name.startswith("paper/mnist_") and name.endswith("net")]
    assert jobs == [[f"experiment={name}"] for name in fitting if not name.endswith("resnet")]
    assert len(jobs) > 1
    assert "none of the solvers matches" in errors(expand, [["solver=glob(xyz*)"]])[0]
    assert "options of a group" in errors(expand, [["seed=glob(*)"]])[0]


@pytest.mark.parametrize("argument", ["seed=range(0,0)", "seed=range(5,2)"])
def test_an_empty_range_raises_an_error(argument):
    assert errors(expand, [["tol=1e-2,1e-3", argument]]) == [f"{argument}: gives no value"]


@pytest.mark.parametrize(
    "arguments", [["seed=range(0,1000000000)"], ["seed=range(0,1000)", "tol=1e-1,1e-2", "model.width=range(1,100)"]]
)
def test_too_many_jobs_raise_an_error_before_they_are_expanded(arguments):
    with pytest.raises(UsageError, match="100,000"):
        expand([arguments])


def test_a_value_given_twice_is_two_equal_jobs():
    assert expand([["seed=0,1,0"]]) == [["seed=0"], ["seed=1"], ["seed=0"]]


def test_a_key_given_twice_raises_an_error():
    (message,) = errors(expand, [["tol=1e-2,1e-3", "seed=0", "tol=1e-4"]])
    assert message == "tol is given 2 times; give all its values at once: tol=A,B"
    assert expand([["tol=1e-3", "tol=1e-4"]]) == [["tol=1e-3", "tol=1e-4"]]


def test_every_invalid_override_is_reported():
    messages = errors(
        expand, [["solver=dopri5,tsit", "tol=interval(0,1)", "=", "run_dir=x", "hydra.sweep.dir=y", "outputs=a,b"]]
    )
    assert [line.split(":")[0] for line in messages] == [
        "unknown solver tsit; did you mean tsit5? (odebench list solvers prints all)",
        "tol=interval(0,1)",
        "malformed setting '='",
        "run_dir=x",
        "hydra.sweep.dir=y",
        "outputs=a,b",
    ]


def test_a_file_of_one_grid(tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text("solver: [dopri5, tsit5]\ntol: 1e-2,1e-3\nseed: range(0,3)\nschedule.milestones: [[1, 2], [3]]\n")
    assert read_grids(file) == [
        ["solver=dopri5,tsit5", "tol=1e-2,1e-3", "seed=range(0,3)", "schedule.milestones=[1,2],[3]"]
    ]
    assert len(expand(read_grids(file))) == 2 * 2 * 3 * 2


def test_a_string_in_a_list_is_one_value_whatever_it_contains(tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text("data.root: ['/tmp/a,b', \"/it's [here]\", /tmp/c]\ntol: [1e-3]\n")
    roots = [job[0] for job in expand(read_grids(file))]
    assert roots == ["data.root='/tmp/a,b'", "data.root='/it\\'s [here]'", "data.root=/tmp/c"]


def test_overrides_replace_settings_in_every_grid_of_a_file(tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text("- {model: odenet, tol: [0.1, 0.01]}\n- {model: resnet, data.augment: true, init_from: null}\n")
    assert merge_grids(read_grids(file), ["tol=1e-3", "seed=1,2"]) == [
        ["model=odenet", "tol=1e-3", "seed=1,2"],
        ["model=resnet", "data.augment=true", "init_from=null", "tol=1e-3", "seed=1,2"],
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- tol\n", "is not a block"),
        ("", "holds no settings"),
        ("[]\n", "holds no settings"),
        ("tol: []\n", "tol has no values"),
        ("solver: {name: rk4}\n", "write its keys with dots, as in solver.name"),
        ("cluster: slurm\n", "cluster cannot be set here; write it on the command line"),
        ("tol: [1, 2\n", "expected"),
        ("tol: !!python/object/apply:os.system ['touch ran']\n", "could not determine a constructor"),
    ],
)
def test_an_invalid_file_raises_an_error_and_nothing_in_it_is_executed(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep.yaml").write_text(text)
    assert message in errors(read_grids, tmp_path / "sweep.yaml")[0]
    assert not (tmp_path / "ran").exists()


def test_a_binary_file_raises_an_error(tmp_path):
    (tmp_path / "sweep.yaml").write_bytes(b"\xff\xfe\x00")
    assert "codec can't decode" in errors(read_grids, tmp_path / "sweep.yaml")[0]


def test_a_missing_file_raises_an_error(tmp_path):
    assert errors(read_grids, tmp_path / "no.yaml") == [f"--file {tmp_path / 'no.yaml'}: no such file"]


def test_valid_overrides_expand_without_the_invalid_ones_and_the_settings_of_their_groups():
    arguments = ["solver=dopri55,rk4", "solver.steps=8", "tol=1,2", "model=odnet", "="]
    jobs, errors, uncertain_keys = expand_valid([arguments, ["seed=1"]])
    assert jobs == [["tol=1"], ["tol=2"], ["seed=1"]]
    assert [error.split(";")[0] for error in errors] == ["unknown solver dopri55", "unknown model odnet", errors[2]]
    assert errors[2].startswith("malformed setting '='")
    assert uncertain_keys == {*PLURALS}  # a model brings the options of other groups
    assert expand_valid([["solver=dopri55,rk4", "tol=1,a", "seed=="]])[2] == {"solver", "seed"}


BOMB = "a0: &a0 [1, 2]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 40))


@pytest.mark.parametrize("text", [BOMB, "a: &a [*a]\n", "a: &a {b: *a}\n"], ids=["bomb", "list", "mapping"])
def test_aliases_that_repeat_too_much_are_one_line(text, tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    for read in (read_grids, read_yaml, lambda path: load_sweep(path.parent)):
        (tmp_path / "sweep.yaml").write_text(text)
        with pytest.raises(UsageError, match=r"aliases|not YAML") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_aliases_and_merge_keys_are_allowed(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text("- &base {seed: [0, 1], tol: 1e-2}\n- {<<: *base, tol: &t 1e-3, optim.lr: *t}\n")
    assert read_grids(path)[1] == ["seed=0,1", "tol=0.001", "optim.lr=0.001"]
