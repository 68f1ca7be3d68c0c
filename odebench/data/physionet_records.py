"""Records of the PhysioNet/Computing in Cardiology Challenge 2012, from the challenge's own files.

A record is a text file of lines `Time,Parameter,Value`; the time is in hours and minutes since admission. One table
holds the outcomes of a set of records. Folders or archives hold set-a/132539.txt, ..., Outcomes-a.txt, and so on.
Archives are read in memory and not unpacked to disk.
"""

import csv
import hashlib
import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from odebench.data.cache import load_arrays, save_arrays
from odebench.errors import UsageError, did_you_mean

STATIC = ("Age", "Gender", "Height", "ICUType")
# Recorded at admission. The weight may be measured again later, the static descriptors are not.
DESCRIPTORS = (*STATIC, "Weight")

MEASURED = (
    "Albumin ALP ALT AST Bilirubin BUN Cholesterol Creatinine DiasABP FiO2 GCS Glucose HCO3 HCT HR K Lactate Mg MAP "
    "MechVent Na NIDiasABP NIMAP NISysABP PaCO2 PaO2 pH Platelets RespRate SaO2 SysABP Temp TroponinI TroponinT "
    "Urine WBC"
)
PARAMETERS = (*DESCRIPTORS, *MEASURED.split())
UNKNOWN = -1.0  # the challenge's value for a descriptor that is not known

SPAN_MINUTES = 48 * 60
ARCHIVES = (".tar.xz", ".tar.gz", ".tgz", ".zip")

_HEADER = "Time,Parameter,Value"
_RECORD_ID = "RecordID"
_CACHE_FORMAT = 1
_LARGEST = float(np.finfo(np.float32).max)
_CODES = {name: code for code, name in enumerate((*PARAMETERS, _RECORD_ID))}
_MINUTES = {f"{minute // 60:02}:{minute % 60:02}": minute for minute in range(SPAN_MINUTES + 1)}


@dataclass(frozen=True)
class Records:
    """N records with M values in total, concatenated in the order of their files' lines.

    ids: int64 [N], the challenge's numbers of the records, increasing; deaths: int8 [N], 1 for a death in hospital;
    lengths: int64 [N], the number of values of each record; minutes: int16 [M], since admission; parameters: int8 [M],
    indices into PARAMETERS; values: float32 [M]. Unknown descriptors are dropped.
    """

    ids: np.ndarray
    deaths: np.ndarray
    lengths: np.ndarray
    minutes: np.ndarray
    parameters: np.ndarray
    values: np.ndarray

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for array in vars(self).values():
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def read_set(folder: Path, letter: str) -> tuple[Records, dict[str, dict[str, int | str]]]:
    """The records of set-a or set-b in this folder, unpacked or in archives, and a description of the files read.

    The parsed records are cached in the folder. Raises UsageError if the set is missing, incomplete, damaged or
    not in the challenge's format.
    """
    unpacked, archives = _sources(folder, letter)
    files: dict[str, dict[str, int | str]] = {
        path.name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in archives
    }
    if unpacked:
        files[f"set-{letter}"] = {"files": len(unpacked), "bytes": sum(path.stat().st_size for path in unpacked)}
    cache = folder / f"records-{letter}.npz"
    fingerprint = _fingerprint([*unpacked, *archives])
    cached = load_arrays(cache)
    if cached is not None and str(cached.pop("stamp", "")) == fingerprint:
        return Records(**cached), files
    contents = {name: content for path in archives for name, content in _members(path, letter)}
    contents |= {path.relative_to(folder).as_posix(): path.read_bytes() for path in unpacked}
    records = parse_set(folder, letter, contents)
    save_arrays(cache, {**vars(records), "stamp": np.array(fingerprint)})
    return records, files


def parse_set(folder: Path, letter: str, contents: dict[str, bytes]) -> Records:
    """Parse the records and outcomes of a set. contents: file name -> content; folder: for error messages."""
    outcomes = contents.pop(f"Outcomes-{letter}.txt", None)
    if outcomes is None or not contents:
        missing = [*(["set-" + letter] if not contents else []), *([f"Outcomes-{letter}.txt"] if not outcomes else [])]
        raise UsageError(
            f"{folder} lacks {' and '.join(missing)}, unpacked or in an archive ({', '.join(ARCHIVES)}); set "
            "data.root=DIR or $ODEBENCH_DATA to a folder with PhysioNet2012/ inside, which holds the challenge's "
            "files (https://physionet.org/content/challenge-2012)"
        )
    deaths = _parse_outcomes(f"{folder / f'Outcomes-{letter}.txt'}", outcomes)
    names = dict(sorted((int(PurePosixPath(name).stem), name) for name in contents))
    if names.keys() != deaths.keys():
        without = len(deaths.keys() - names.keys()) or len(names.keys() - deaths.keys())
        what = "outcomes have no record" if deaths.keys() - names.keys() else "records have no outcome"
        raise UsageError(
            f"{folder} is incomplete: {without:,} of set-{letter}'s {what}; copy or unpack the challenge's files again"
        )
    parsed = [parse_record(str(folder / name), contents[name]) for name in names.values()]
    minutes, parameters, values = (np.concatenate(parts) for parts in zip(*parsed, strict=True))
    return Records(
        ids=np.array(list(names), dtype=np.int64),
        deaths=np.array([deaths[number] for number in names], dtype=np.int8),
        lengths=np.array([len(part[0]) for part in parsed], dtype=np.int64),
        minutes=minutes,
        parameters=parameters,
        values=values,
    )


def parse_record(path: str, content: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parse the file of one record: its minutes, parameters and values, as in ``Records``. path: for error messages.

    Raises UsageError, which names the line, for anything that is not in the challenge's format.
    """
    header, *lines = content.decode("ascii", "replace").splitlines() or [""]
    fields = ",".join(lines).split(",") if lines else []
    try:
        minutes = np.array([_MINUTES[clock] for clock in fields[0::3]], dtype=np.int16)
        codes = np.array([_CODES[name] for name in fields[1::3]], dtype=np.int8)
        values = np.array([float(number) for number in fields[2::3]])
        valid = header == _HEADER and len(fields) == 3 * len(lines)
    except (KeyError, ValueError):
        valid = False
    if not valid or (np.diff(minutes) < 0).any() or not (np.abs(values) <= _LARGEST).all():
        raise _first_error(path, header, lines)
    unknown = (codes < len(DESCRIPTORS)) & (values == UNKNOWN)
    kept = ~unknown & (codes != _CODES[_RECORD_ID])
    return minutes[kept], codes[kept], values[kept].astype(np.float32)


def _first_error(path: str, header: str, lines: list[str]) -> UsageError:
    """Make the error message for the first invalid line of a record."""
    if header != _HEADER:
        return UsageError(f"{path} is not a record of the challenge: it does not begin with {_HEADER}")
    before = "00:00"
    for number, line in enumerate(lines, start=2):
        where = f"{path}, line {number}"
        clock, name, value, *more = [*line.split(","), "", ""]
        if len(more) != 2:
            return UsageError(f"{where}: {line[:40]!r} is not of the form {_HEADER}")
        if clock not in _MINUTES:
            return UsageError(f"{where}: time {clock} is not between 00:00 and 48:00")
        if name not in _CODES:
            return UsageError(f"{where}: unknown parameter {name or 'without a name'}{did_you_mean(name, PARAMETERS)}")
        if not _is_number(value):
            return UsageError(f"{where}: {value!r} is not a number")
        if _MINUTES[clock] < _MINUTES[before]:
            return UsageError(f"{where}: time {clock} after {before}; times must not go backwards")
        before = clock
    raise AssertionError(f"{path} has no invalid line")


def _is_number(text: str) -> bool:
    try:
        return abs(float(text)) <= _LARGEST
    except ValueError:
        return False


def _parse_outcomes(path: str, content: bytes) -> dict[int, int]:
    """Parse the table of outcomes: record number -> 1 for a death in hospital, else 0. path: for error messages."""
    rows = csv.DictReader(content.decode("ascii", "replace").splitlines())
    try:
        outcomes = [(int(row["RecordID"]), int(row["In-hospital_death"])) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is damaged: it is not a table with RecordID and In-hospital_death") from error
    deaths = dict(outcomes)
    if len(deaths) < len(outcomes):
        raise UsageError(f"{path} is damaged: it lists a record twice")
    if not deaths or not set(deaths.values()) <= {0, 1}:
        raise UsageError(f"{path} is damaged: it must have records, each with In-hospital_death 0 or 1")
    return deaths


def _sources(folder: Path, letter: str) -> tuple[list[Path], list[Path]]:
    """The unpacked files of a set in the folder and, if they are incomplete, the archives in which to look for it."""
    outcomes = folder / f"Outcomes-{letter}.txt"
    listed = (path for path in (folder / f"set-{letter}").glob("*.txt") if path.stem.isdecimal())
    records = sorted(path for path in listed if path.is_file())
    unpacked = [*records, *([outcomes] if outcomes.is_file() else [])]
    if records and outcomes.is_file():
        return unpacked, []
    return unpacked, sorted(path for path in folder.glob("*") if path.name.endswith(ARCHIVES))


def _fingerprint(paths: list[Path]) -> str:
    """A hash that changes with a file's size or time, and with the format of the cache."""
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return hashlib.sha256(repr((_CACHE_FORMAT, stats)).encode()).hexdigest()


def _members(path: Path, letter: str) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of each file in an archive that belongs to this set.

    Raises UsageError for an archive that cannot be read to its end, or that holds a link or a path outside its folder.
    """
    pattern = re.compile(rf"(?:^|/)(set-{letter}/\d+\.txt|Outcomes-{letter}\.txt)$")
    try:
        for name, is_plain, read in (_zip_entries if path.suffix == ".zip" else _tar_entries)(path):
            outside = name.startswith("/") or ".." in PurePosixPath(name.replace("\\", "/")).parts
            if outside or not is_plain:
                what = "a path outside its folder" if outside else "something that is neither file nor folder"
                raise UsageError(f"{path} is not the challenge's archive: it contains {what}, {name!r}; remove it")
            if found := pattern.search(name):
                yield found[1], read()
    except (EOFError, OSError, RuntimeError, tarfile.TarError, lzma.LZMAError, zlib.error, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path} is damaged: cannot unpack it ({reason}); remove it and copy it again") from error


Entry = tuple[str, bool, Callable[[], bytes]]


def _tar_entries(path: Path) -> Iterator[Entry]:
    """Yield for each entry: its name, whether it is a file or a folder, and a function that reads it.

    Reads the archive to its end.
    """
    # tarfile's stream mode is not used here, since it does not notice a truncated file.
    with tarfile.open(path) as archive:
        for member in archive:
            yield member.name, member.isfile() or member.isdir(), partial(_read_tar, archive, member)
        while archive.fileobj is not None and archive.fileobj.read(2**20):  # up to the checksum of the compressed file
            pass


def _read_tar(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None, "only files are read"
    return file.read()


def _zip_entries(path: Path) -> Iterator[Entry]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            yield info.filename, not stat.S_ISLNK(info.external_attr >> 16), partial(archive.read, info)
