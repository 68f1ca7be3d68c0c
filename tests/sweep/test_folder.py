from pathlib import Path

import pytest

from odebench.errors import UsageError
from odebench.record.reader import find_runs, read_overview
from odebench.sweep.folder import SWEEP_FILE, Sweep, create_folder, is_sweep, load_sweep, write_sweep
from odebench.sweep.validate import Job

HOSTILE = ["data.root='a\nb; $(touch ran) `id` \"x\" %A \\'y\\''", "init_from=~", "x={a: [1, 'ü']}", "- !!python/none"]


@pytest.fixture
def written(tmp_path):
    jobs = (Job(0, "0000_mlp", tuple(HOSTILE)), Job(1, "0001_odenet_rk4", ("tol=1",)))
    sweep = Sweep(tmp_path / "s", jobs, ("cluster.jobs=2",), Path("/my configs"), Path("/some where"))
    sweep.path.mkdir()
    write_sweep(sweep)
    return sweep


def test_a_sweep_reads_back_as_it_was_written(written):
    assert is_sweep(written.path)
    assert load_sweep(written.path) == written


def test_new_jobs_are_listed_as_queued_and_are_not_runs(written):
    assert [read_overview(path).status for path in find_runs(written.path, queued=True)] == ["queued", "queued"]
    assert find_runs(written.path) == []


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "0000_a/../../b", "..", "0_a\n", "lock", ""])
def test_a_job_cannot_name_a_folder_outside(written, name):
    file = written.path / SWEEP_FILE
    file.write_text(file.read_text().replace("0001_odenet_rk4", repr(name) if name else "''"))
    with pytest.raises(UsageError, match="is damaged"):
        load_sweep(written.path)


@pytest.mark.parametrize("text", ["", "[]", "a: [", "format: 2\n", "format: 1\njobs: 3\n", "!!python/name:os.system"])
def test_an_invalid_sweep_file_raises_an_error(written, text):
    (written.path / SWEEP_FILE).write_text(text)
    with pytest.raises(UsageError, match=r"sweep\.yaml (is damaged|was written by another version)"):
        load_sweep(written.path)


def test_a_new_sweep_never_goes_into_a_folder_in_use(tmp_path):
    assert create_folder(None, str(tmp_path)).parent.parent == tmp_path / "sweeps"
    (tmp_path / "x").touch()
    with pytest.raises(UsageError, match=r"is not empty; give another --output$"):
        create_folder(tmp_path, "")
    with pytest.raises(UsageError, match="must not contain"):
        create_folder(tmp_path / "a\nb", "")
    for path in (tmp_path / "x", tmp_path / "x" / "y"):
        with pytest.raises(UsageError, match=rf"^--output {path} cannot be made"):
            create_folder(path, "")
    with pytest.raises(UsageError, match=rf"^outputs={tmp_path / 'x'} cannot be made"):
        create_folder(None, str(tmp_path / "x"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweeps", "x"]
