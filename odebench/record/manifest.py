"""Build the manifest of a run: command, settings, versions, machine, data."""

import os
import platform
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

import odebench
from odebench.record.files import utc_now

if TYPE_CHECKING:
    import torch

COMMAND_TIMEOUT_S = 5.0
_PACKAGES = (
    *("numpy", "scipy", "scikit-learn", "pandas", "mlxtend", "torchvision"),
    *("hydra-core", "omegaconf", "tensorboard"),
)
_SLURM = (
    "SLURM_JOB_ID",
    "SLURM_JOB_NAME",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_JOB_NODELIST",
    "SLURM_JOB_PARTITION",
    "SLURM_RESTART_COUNT",
)


def build_manifest(
    config: DictConfig,
    device: "torch.device",
    data: Mapping[str, Any],
    seeds: Mapping[str, int],
    command: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Collect what is needed to trace a run's results, in types of strict JSON.

    config: the composed settings; this function resolves them. data: the provenance of the data set. seeds: maps the
    use of a seed to the seed. command: by default the command of this process. Missing parts (git in a wheel, a GPU in
    a CPU run) are null.
    """
    return {
        "command": list(sys.argv if command is None else command),
        "started": utc_now(),
        "settings": OmegaConf.to_container(config, resolve=True),
        "seeds": dict(seeds),
        "git": git_state(),
        "versions": package_versions(),
        "machine": machine_info(device),
        "slurm": {name: os.environ[name] for name in _SLURM if name in os.environ} or None,
        "data": dict(data),
    }


def package_versions() -> dict[str, str | None]:
    """Return the versions of Python, odebench and the packages that affect results; null for a missing package."""
    import torch

    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "odebench": odebench.__version__,
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
    }
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def git_state() -> dict[str, Any] | None:
    """Return the commit of the odebench checkout and whether it has uncommitted changes; None outside a checkout."""
    root = Path(odebench.__file__).resolve().parent.parent
    if not (root / ".git").exists():  # installed from a wheel: git would describe the project around it
        return None
    status = _command_output("git", "-C", str(root), "status", "--porcelain")
    if status is None:
        return None
    return {"commit": _command_output("git", "-C", str(root), "rev-parse", "HEAD"), "dirty": bool(status)}


def machine_info(device: "torch.device") -> dict[str, Any]:
    """Describe this machine: host, platform, processor, threads, and the GPU if ``device`` is one."""
    import torch

    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "began": process_start(os.getpid()),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "threads": torch.get_num_threads(),
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "gpu_driver": _gpu_driver() if device.type == "cuda" else None,
    }


def process_start(pid: int) -> str | None:
    """Return the boot id and the start time of the process ``pid``, which identify it even if its number is reused.

    None if there is no such process, or if the system does not provide them.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # The command name is in brackets and may itself contain spaces and brackets.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return f"{boot} {fields[19]}"


def cpu_model() -> str | None:
    """Return the processor's name, or its architecture if the system does not know the name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (names[0] if names else "") or platform.processor() or platform.machine() or None


def _gpu_driver() -> str | None:
    lines = _command_output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return lines.splitlines()[0] if lines else None


def _command_output(*command: str) -> str | None:
    """Run a command and return its output; None if it fails, does not exist or takes too long."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # take no lock: another git process may be running
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, env=environment, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
