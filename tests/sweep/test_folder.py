from pathlib import Path

import pytest
import yaml

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


TENFOLD = "a: &a [0,0,0,0,0,0,0,0,0,0]\n" + "".join(
    f"{name}: &{name} [{','.join(10 * [f'*{of}'])}]\n" for of, name in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize("text", ["", "[]", "a: [", "format: 2\n", "format: 1\njobs: 3\n", "!!python/name:os.system"])
def test_an_invalid_sweep_file_raises_an_error(written, text):
    (written.path / SWEEP_FILE).write_text(text)
    with pytest.raises(UsageError, match=r"sweep\.yaml (is damaged|was written by another version)"):
        load_sweep(written.path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (TENFOLD, r"its aliases \(\*NAME\) repeat more than 100,000 values"),
        ("a: &a " + 2000 * "[", "recursion|nesting"),
        ("a: \xff", "unacceptable character|invalid"),
    ],
    ids=["aliases of aliases", "brackets", "bytes"],
)
def test_the_message_says_why_a_sweep_file_is_damaged(written, text, reason):
    (written.path / SWEEP_FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=rf"sweep\.yaml is damaged: .*({reason})") as caught:
        load_sweep(written.path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("jobs", []), ("jobs", [5]), ("jobs", [{"name": "0_a", "overrides": "tol=1"}]), ("jobs", {"a": 1}), ("cwd", 5),
     ("cwd", None), ("config_dir", [1]), ("cluster", "x"), ("cluster", [1])],
)  # fmt: skip
def test_a_wrong_entry_of_a_sweep_file_is_named(written, key, value):
    file = written.path / SWEEP_FILE
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {key: value}))
    with pytest.raises(
        UsageError, match=rf"sweep\.yaml is damaged: its entry {key} is missing or wrong; start a new sweep$"
    ):
        load_sweep(written.path)


def test_a_new_sweep_never_goes_into_a_folder_in_use(tmp_path):
    assert create_folder(None, str(tmp_path)).parent.parent == tmp_path / "sweeps"
    (tmp_path / "x").touch()
    with pytest.raises(UsageError, match=r"is not empty; name another folder$"):
        create_folder(tmp_path, "")
    with pytest.raises(UsageError, match="must not contain"):
        create_folder(tmp_path / "a\nb", "")
    for path in (tmp_path / "x", tmp_path / "x" / "y"):
        with pytest.raises(UsageError, match=rf"^the sweep's folder {path} cannot be made"):
            create_folder(path, "")
    with pytest.raises(UsageError, match=rf"^outputs={tmp_path / 'x'} cannot be made"):
        create_folder(None, str(tmp_path / "x"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweeps", "x"]
