"""A stand-in for Slurm: `install` makes sbatch, srun, scontrol and sacct of this file, which run jobs right here."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path


def install(folder: Path) -> dict[str, str]:
    """Puts the commands into a folder; what to add to the environment so that they are found."""
    folder.mkdir()
    for name in ("sbatch", "srun", "scontrol", "sacct"):
        command = folder / name
        command.write_text(f"#!{sys.executable}\n{Path(__file__).read_text()}")
        command.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "STAND_IN_SLURM": str(folder)}


def sbatch(script: str) -> None:
    print("Submitted batch job 7")
    sys.stdout.flush()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.Popen([sys.argv[0], "--run", script], start_new_session=True, **quiet)


def run(script: str) -> None:
    """The jobs of an array, each again for as long as it asks for it."""
    text = Path(script).read_text()
    array = re.search(r"--array=0-(\d+)", text)
    n_task = re.search(r"--ntasks-per-node=(\d+)", text)
    for index in range(int(array[1]) + 1 if array else 1):
        environment = {
            **os.environ,
            "SLURM_JOB_ID": str(7 + index),
            "SLURM_JOB_NODELIST": "here",
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_NODEID": "0",
            "SLURM_NTASKS": n_task[1] if n_task else "1",
        }
        name = "7"
        if array:
            environment |= {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(index)}
            name = f"7_{index}"
        again = Path(os.environ["STAND_IN_SLURM"]) / f"requeue-{name}"
        for attempt in range(10):
            environment["SLURM_RESTART_COUNT"] = str(attempt)
            subprocess.run(["bash", script], env=environment)
            if not again.exists():
                break
            again.unlink()


def srun(arguments: list[str]) -> None:
    paths = {}
    while arguments[0].startswith("-"):
        option, _, value = arguments.pop(0).partition("=")
        if option in ("--output", "--error"):
            paths[option] = value or arguments.pop(0)
    n_task = int(os.environ["SLURM_NTASKS"])
    tasks = []
    for rank in range(n_task):
        known = {"%A": "SLURM_ARRAY_JOB_ID", "%a": "SLURM_ARRAY_TASK_ID", "%j": "SLURM_JOB_ID"}
        files = []
        for option in ("--output", "--error"):
            path = paths[option].replace("%t", str(rank))
            for sign, variable in known.items():
                path = path.replace(sign, os.environ.get(variable, ""))
            files.append(open(path, "a"))  # noqa: SIM115
        own = {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_STEP_NUM_TASKS": n_task}
        environment = os.environ | {key: str(value) for key, value in own.items()}
        tasks.append(subprocess.Popen(arguments, env=environment, stdout=files[0], stderr=files[1]))
    (Path(os.environ["STAND_IN_SLURM"]) / "tasks").write_text(" ".join(str(task.pid) for task in tasks))
    sys.exit(max(abs(task.wait()) for task in tasks))


def scontrol(arguments: list[str]) -> None:
    if arguments[:2] == ["show", "hostnames"]:
        print("127.0.0.1")
    elif arguments[0] == "requeue":
        folder = Path(os.environ["STAND_IN_SLURM"])
        (folder / f"requeue-{arguments[1]}").touch()
        for task in (folder / "tasks").read_text().split():
            if int(task) != os.getppid():
                os.kill(int(task), signal.SIGTERM)


if __name__ == "__main__":
    name, rest = Path(sys.argv[0]).name, sys.argv[1:]
    if name == "sbatch":
        run(rest[1]) if rest[0] == "--run" else sbatch(rest[-1])
    elif name == "srun":
        srun(rest)
    elif name == "scontrol":
        scontrol(rest)
    else:
        print("JobID|State|NodeList\n7|RUNNING|here")
