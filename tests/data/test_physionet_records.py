"""The challenge's files: found in every layout, parsed exactly, and checked for errors."""

import io
import os
import tarfile
import zipfile

import numpy as np
import pytest

from odebench.data import physionet_records
from odebench.data.physionet_records import PARAMETERS, parse_record, read_set
from odebench.errors import UsageError

HEADER = "Time,Parameter,Value\n"


def record(number: int) -> str:
    lines = [f"00:00,RecordID,{number}", f"00:00,Age,{40 + number % 30}", "00:00,Gender,1", "00:00,Height,-1"]
    lines += ["00:00,ICUType,3", "00:00,Weight,70.5", f"01:07,HR,{60 + number % 9}", "01:07,Temp,36.6"]
    return HEADER + "\n".join([*lines, f"{number % 40 + 2:02}:30,HR,80", "48:00,pH,7.4"]) + "\n"


def challenge_files(letter: str, numbers: range) -> dict[str, bytes]:
    outcomes = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death\n"
    outcomes += "".join(f"{number},6,1,5,-1,{number % 2}\n" for number in numbers)
    files = {f"set-{letter}/{number}.txt": record(number).encode() for number in reversed(numbers)}
    return {**files, f"Outcomes-{letter}.txt": outcomes.encode()}


FILES = challenge_files("a", range(132500, 132520))


def write_files(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def write_archive(path, files, links=()):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
            for name, target in links:
                info = zipfile.ZipInfo(name)
                info.external_attr = 0o120777 << 16
                archive.writestr(info, target)
        return
    with tarfile.open(path, f"w:{path.suffix[1:]}") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, target in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)


def error_line(folder, letter="a") -> str:
    with pytest.raises(UsageError) as caught:
        read_set(folder, letter)
    line = str(caught.value)
    assert "\n" not in line
    return line


def lay_out(folder, layout):
    outcomes = {"Outcomes-a.txt": FILES["Outcomes-a.txt"]}
    records = {name: content for name, content in FILES.items() if name.startswith("set-a")}
    if layout == "folder":
        write_files(folder, {"set-a/readme.txt": b"", **FILES})
    elif layout == "the challenge's archive beside its outcomes":
        write_archive(folder / "set-a.tar.gz", records)
        write_files(folder, outcomes)
    elif layout == "a top folder":
        write_archive(folder / "all.zip", {f"challenge-2012/{name}": content for name, content in FILES.items()})
    else:
        write_archive(folder / f"physionet2012.{layout}", {"readme.txt": b"", **FILES})


LAYOUTS = ["folder", "tar.xz", "tar.gz", "zip", "the challenge's archive beside its outcomes", "a top folder"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_records(tmp_path, layout):
    lay_out(tmp_path, layout)
    records, files = read_set(tmp_path, "a")
    assert records.ids.tolist() == list(range(132500, 132520))
    assert records.deaths.tolist() == [0, 1] * 10
    assert records.lengths.tolist() == [8] * 20
    first = [(PARAMETERS[p], int(m), float(v)) for p, m, v in zip(*_fields(records, 8), strict=True)]
    assert first == [
        ("Age", 0, 60.0),
        ("Gender", 0, 1.0),
        ("ICUType", 0, 3.0),
        ("Weight", 0, 70.5),
        ("HR", 67, 62.0),
        ("Temp", 67, pytest.approx(36.6)),
        ("HR", 1350, 80.0),
        ("pH", 2880, pytest.approx(7.4)),
    ]
    assert sum(int(facts["bytes"]) for facts in files.values()) > 0


def _fields(records, count):
    return records.parameters[:count], records.minutes[:count], records.values[:count]


def test_nothing_but_the_parsed_records_is_written(tmp_path):
    lay_out(tmp_path, "tar.xz")
    read_set(tmp_path, "a")
    assert sorted(os.listdir(tmp_path)) == ["physionet2012.tar.xz", "records-a.npz"]


def test_parsed_records_are_cached_until_a_file_changes(tmp_path, monkeypatch):
    lay_out(tmp_path, "folder")
    first, _ = read_set(tmp_path, "a")
    with monkeypatch.context() as patch:
        patch.setattr(physionet_records, "parse_set", None)
        assert read_set(tmp_path, "a")[0].sha256() == first.sha256()
    path = tmp_path / "set-a" / "132503.txt"
    path.write_bytes(path.read_bytes().replace(b"36.6", b"41.25"))
    assert 41.25 in read_set(tmp_path, "a")[0].values
    (tmp_path / "records-a.npz").write_bytes(b"cut")
    assert 41.25 in read_set(tmp_path, "a")[0].values


@pytest.mark.parametrize("suffix", ["tar.xz", "tar.gz", "zip"])
@pytest.mark.parametrize("share", [0, 0.3, 0.7, 0.99], ids=lambda share: f"{share:.0%} of it")
def test_a_truncated_archive_raises_one_line(tmp_path, suffix, share):
    path = tmp_path / f"physionet2012.{suffix}"
    write_archive(path, FILES)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert f"{path} is damaged: cannot unpack it" in error_line(tmp_path)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", ["tar.xz", "tar.gz", "zip"])
@pytest.mark.parametrize("evil", ["../evil", "set-a/../../set-a/1.txt", "/evil/set-a/1.txt", "..\\evil"])
def test_an_archive_with_a_path_outside_its_folder_raises_an_error_and_writes_nothing(tmp_path, suffix, evil):
    folder = tmp_path / "root" / "PhysioNet2012"
    folder.mkdir(parents=True)
    path = folder / f"physionet2012.{suffix}"
    write_archive(path, {**FILES, evil: b"mine"})
    line = error_line(folder)
    assert f"{path} is not the challenge's archive: it contains a path outside its folder" in line
    assert evil.replace("\\", "\\\\") in line
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]


@pytest.mark.parametrize("suffix", ["tar.xz", "zip"])
def test_an_archive_with_a_link_raises_an_error(tmp_path, suffix):
    write_archive(tmp_path / f"physionet2012.{suffix}", FILES, links=[("set-a/132600.txt", "/etc/passwd")])
    assert "neither file nor folder, 'set-a/132600.txt'" in error_line(tmp_path)


def test_the_error_about_missing_files_names_them_and_the_remedies(tmp_path):
    line = error_line(tmp_path)
    for word in (str(tmp_path), "set-a and Outcomes-a.txt", ".tar.xz", "data.root=DIR", "$ODEBENCH_DATA"):
        assert word in line
    lay_out(tmp_path, "folder")
    assert "lacks set-b and Outcomes-b.txt" in error_line(tmp_path, "b")
    (tmp_path / "Outcomes-a.txt").unlink()
    assert "lacks Outcomes-a.txt" in error_line(tmp_path)


def test_records_and_outcomes_must_have_the_same_numbers(tmp_path):
    lay_out(tmp_path, "folder")
    (tmp_path / "set-a" / "132507.txt").unlink()
    assert "1 of set-a's outcomes have no record" in error_line(tmp_path)
    write_files(tmp_path, {**FILES, "set-a/999.txt": record(999).encode()})
    assert "1 of set-a's records have no outcome" in error_line(tmp_path)


def test_a_duplicate_outcome_raises_an_error_and_a_folder_is_not_a_record(tmp_path):
    lay_out(tmp_path, "folder")
    (tmp_path / "set-a" / "2.txt").mkdir()
    whole, _ = read_set(tmp_path, "a")
    outcomes = tmp_path / "Outcomes-a.txt"
    outcomes.write_bytes(outcomes.read_bytes() + outcomes.read_bytes().splitlines()[-1])
    assert len(whole.ids) == len(FILES) - 1
    assert "it lists a record twice" in error_line(tmp_path)


@pytest.mark.parametrize("outcomes", ["RecordID,Survival\n1,2\n", "RecordID,In-hospital_death\n1,x\n", "\n", "<html>"])
def test_invalid_outcomes_raise_an_error(tmp_path, outcomes):
    write_files(tmp_path, {**FILES, "Outcomes-a.txt": outcomes.encode()})
    line = error_line(tmp_path)
    assert "Outcomes-a.txt" in line


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("01:00,Heart,80", "unknown parameter Heart"),
        ("01:00,Platelet,80", "unknown parameter Platelet; did you mean Platelets?"),
        ("01:00,,80", "unknown parameter without a name"),
        ("00:30,HR,80", "time 00:30 after 00:37; times must not go backwards"),
        ("49:00,HR,80", "time 49:00 is not between 00:00 and 48:00"),
        ("-1:00,HR,80", "time -1:00 is not"),
        ("01:00,HR,high", "'high' is not a number"),
        ("01:00,HR,nan", "'nan' is not a number"),
        ("01:00,HR,1e99", "'1e99' is not a number"),
        ("01:00,HR", "'01:00,HR' is not of the form Time,Parameter,Value"),
        ("01:00,HR,80,1", "is not of the form Time,Parameter,Value"),
        ("", "'' is not of the form Time,Parameter,Value"),
    ],
)
def test_the_error_describes_the_invalid_line_of_a_record(line, message):
    content = f"{HEADER}00:00,RecordID,7\n00:37,HR,70\n{line}\n02:00,HR,80\n"
    with pytest.raises(UsageError) as caught:
        parse_record("set-a/7.txt", content.encode())
    assert str(caught.value).startswith("set-a/7.txt, line 4: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"<html>\n", b"Time,Value\n00:00,1\n"])
def test_a_file_that_is_not_a_record_raises_an_error(content):
    with pytest.raises(UsageError, match=r"^set-a/7.txt is not a record of the challenge"):
        parse_record("set-a/7.txt", content)


def test_a_record_without_a_value_and_one_with_other_line_endings_are_read():
    minutes, _, _ = parse_record("7.txt", HEADER.encode())
    assert len(minutes) == 0
    text = record(132501)
    for ours, theirs in zip(
        parse_record("", text.encode()), parse_record("", text.replace("\n", "\r\n").encode()), strict=True
    ):
        assert np.array_equal(ours, theirs)
