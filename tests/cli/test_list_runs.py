"""`odebench list runs`: filters, order and formats, on real trainings."""

import json

import pytest

from odebench.cli import main
from odebench.record.writer import RunWriter

TINY = "trainer.iterations=2 data.train_limit=64 data.validation=40 trainer.batch_size=16 device=cpu"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two classifiers, an ODE-Net that diverged, and a job that has not started."""
    folder = tmp_path_factory.mktemp("runs")
    trainings = {
        "a": "model=mlp name=first tags=[baseline,small]",
        "b": "model=mlp optim.lr=0.5 seed=3 tags=[other]",
        "c": "model=odenet model.width=8 model.groups=4 tol=1e-4 solver.max_steps=1",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunWriter, "write_figure", lambda *_, **__: None)
        for name, words in trainings.items():
            assert main(["train", *words.split(), *TINY.split(), f"run_dir={folder / name}"]) in (0, 3)
    (folder / "d").mkdir()
    (folder / "d" / "status.json").write_text('{"status": "queued"}')
    return folder


@pytest.fixture
def listed(runs, capsys):
    """The names of the runs that `list runs` prints, one letter each."""

    def call(*words):
        code = main(["list", "runs", str(runs), *words])
        rows = capsys.readouterr().out.splitlines()[1:]
        assert code == (0 if rows else 1)
        return "".join(row.split()[0][-1] for row in rows)

    return call


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ("", "abcd"),
        ("status=done", "ab"),
        ("status!=done", "cd"),
        ("model=mlp", "ab"),
        ("model.name=odenet", "c"),
        ("model=*net", "c"),
        ("tol<1e-3", "c"),
        ("tol<=0.0001", "c"),
        ("tol=1e-4", "c"),
        ("tag=baseline", "a"),
        ("tags!=baseline", "bcd"),
        ("tags=[baseline,small]", "a"),
        ("name=first", "a"),
        ("name=null model=mlp", "b"),
        ("optim.lr>=0.5", "b"),
        ("seed=3", "b"),
        ("trainer.compile=false", "abc"),
        ("step=2 status=done optim.lr<0.5", "a"),
        ("test/accuracy>=0", "ab"),
        ("val/loss>0", "ab"),
        ("best/loss>0", "ab"),
        ("parameters>1000 minutes<60", "ab"),
        ("final/nfe_forward>0", ""),
        ("disk>1000000", "ab"),
        ("run=*/b", "b"),
    ],
)
def test_filters(filters, expected, listed):
    assert listed(*filters.split()) == expected


def test_order(listed):
    assert listed("model=mlp", "--sort", "optim.lr") == "ab"
    assert listed("model=mlp", "--sort", "optim.lr", "--reverse") == "ba"
    assert listed("--sort", "parameters", "--reverse")[2:] == "cd"  # without a value
    assert listed("--sort", "status", "status!=queued") == "cab"


def test_columns_have_labels_and_disk_use(runs, capsys):
    assert main(["list", "runs", str(runs)]) == 0
    header, first, second, *_ = (row.split() for row in capsys.readouterr().out.splitlines())
    assert header[:4] == ["RUN", "NAME", "TAGS", "MODEL"]
    assert header[-1] == "DISK"
    assert first[1:5] == ["first", "baseline,", "small", "mlp"]
    assert second[1:4] == ["-", "other", "mlp"]
    assert header[6:9] == ["GRADIENT", "LR", "SEED"]  # what else differs
    size = sum(path.stat().st_size for path in (runs / "a").rglob("*") if path.is_file())
    assert first[-2:] == [f"{size / 2**20:.1f}", "MiB"]


def test_json_has_settings_and_results(runs, capsys):
    assert main(["list", "runs", str(runs), "--json", "status=done", "seed=3"]) == 0
    (run,) = json.loads(capsys.readouterr().out)
    assert (run["run"], run["status"], run["step"]) == (str(runs / "b"), "done", 2)
    assert run["settings"]["optim"]["lr"] == 0.5
    assert run["summary"] == json.loads((runs / "b" / "summary.json").read_text())
    assert run["disk"] > 10_000
    assert main(["list", "runs", str(runs), "--json", "seed=4"]) == 1
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["statos=done"], "unknown key statos; did you mean status?"),
        (["lr>0.1"], "unknown key lr; did you mean optim.lr?"),
        (["test/acuracy>0.1"], "unknown key test/acuracy; did you mean test/accuracy or best/accuracy?"),
        (["status=doen"], "unknown status doen; did you mean done? (statuses: queued, running, done, diverged, "
         "failed, interrupted, timeout)"),
        (["tol<abc"], 'tol<abc: a number is needed after <, as in "tol<1e-3"'),
        (["tol<"], 'tol<: is not a filter; write KEY, a sign = != < <= > >=, and a value, as in status=done or '
         '"tol<1e-3"'),
        (["=done"], '=done: is not a filter; write KEY, a sign = != < <= > >=, and a value, as in status=done or '
         '"tol<1e-3"'),
        (["more"], 'more: name one folder; a filter has a sign, as in status=done or "tol<1e-3"'),
        (["--sort", "tools"], "unknown key tools; did you mean tol?"),
        (["--reverse"], "--reverse: sort the runs by something, as in --sort minutes --reverse"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_wrong_filter_is_one_line(words, line, runs, capsys):
    assert main(["list", "runs", str(runs), *words]) == 2
    assert capsys.readouterr() == ("", f"odebench list: {line}\n")


def test_a_filter_that_the_shell_took_apart(capsys):
    assert main(["list", "runs", "tol"]) == 2  # tol<1e-3 without quotes
    line = 'tol is not a folder; quote filters because of the shell, as in "tol<1e-3"'
    assert capsys.readouterr().err == f"odebench list: {line}\n"


def test_a_folder_with_a_sign_in_its_name(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1").symlink_to(runs)
    (tmp_path / "outputs").mkdir()
    assert main(["list", "runs", "./lr=1", "status=done"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert main(["list", "runs", "lr=1"]) == 2
    assert capsys.readouterr().err.endswith(
        "unknown key lr; a folder with a sign = < > ! in its name is written ./lr=1\n"
    )
