"""Behaves as `odebench train ... run_dir=...` and `odebench resume RUN` do, without a training.

model.hidden says how it ends: 1 failed, 2 wrong settings, 3 diverged, 4 fails at its first start only, 9 is killed,
50 runs until a signal comes and resumes to the end, any other value ends at once with done; from
20 on, the objective is a hundredth of it.
"""

import json
import os
import re
import signal
import socket
import sys
import time
from pathlib import Path


def write_status(folder, status, **more):
    (folder / "status.json").write_text(json.dumps({"status": status, **more}))


def main(command, *arguments):
    if command == "train":
        (quoted,) = [argument.removeprefix("run_dir=") for argument in arguments if argument.startswith("run_dir=")]
        folder = Path(re.sub(r"\\(.)", r"\1", quoted[1:-1]))
        hidden = next(
            (int(argument.split("=")[1]) for argument in arguments if argument.startswith("model.hidden=")), 0
        )
        assert [path.name for path in folder.iterdir()] == ["status.json"], "the folder was not made ready"
    else:
        folder = Path(arguments[0])
        hidden = json.loads((folder / "manifest.json").read_text())["settings"]["model"]["hidden"]
    environment = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}
    note = {"command": command, "job": folder.name, "environment": environment, "began": time.time()}
    noted = Path(os.environ["FAKE_TRAINING_NOTES"]) / f"{time.monotonic_ns()}-{os.getpid()}.json"
    noted.with_suffix(".tmp").write_text(json.dumps(note))  # others read all notes at any time
    noted.with_suffix(".tmp").rename(noted)
    first = sum(json.loads(path.read_text())["job"] == folder.name for path in noted.parent.glob("*.json")) == 1
    if hidden == 2 or hidden < 0:
        print("odebench train: no data there", file=sys.stderr)
        return 2
    settings = {"model": {"name": "mlp", "hidden": hidden}, "trainer": {"objective": "val/accuracy"}}
    machine = {"pid": os.getpid(), "host": socket.gethostname()}
    (folder / "manifest.json").write_text(json.dumps({"settings": settings, "machine": machine}))
    (folder / "settings.yaml").write_text("model: {name: mlp}\n")
    (folder / "metrics.jsonl").write_text('{"step": 5, "elapsed_s": 10.0}\n')
    (folder / "checkpoints").mkdir(exist_ok=True)
    write_status(folder, "running", step=0, steps=20)
    if hidden == 50 and command == "train":
        received = []
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, lambda number, frame: received.append(number))
        (folder / "ready").touch()
        while not received:
            time.sleep(0.01)
        (folder / "checkpoints" / "last.pt").touch()
        write_status(folder, "interrupted", step=7, message="stopped")
        return 75
    if hidden == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    if hidden == 1 or (hidden == 4 and first):
        write_status(folder, "failed", step=5, message="RuntimeError: it broke")
        return 1
    if hidden == 3:
        write_status(folder, "diverged", step=5, message="the loss is nan")
        return 3
    objective = hidden / 100 if hidden >= 20 else 0.5
    (folder / "summary.json").write_text(json.dumps({"objective": objective}))
    write_status(folder, "done", step=20)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
