"""launcher=ray: each run of a sweep a task of a Ray cluster (https://docs.ray.io), as many at once as it has room for.

Runs are processes as with launcher=local, on whichever node Ray picks: all nodes need this checkout and run_dir under
the same path. A task whose node is lost is tried again and goes on from the run's last checkpoint.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec

from hydra.core.utils import JobReturn
from rich.console import Console

from gptstar.errors import UserError
from gptstar.lab.sweeps.launcher import ProcessLauncher, end_with_parent, returned


class RayLauncher(ProcessLauncher):
    """address: of a running cluster, auto for the one that this machine belongs to, null for one of this machine alone.

    cpus, gpus   of a run; retries: of one whose node was lost
    """

    def __init__(self, address: str | None = None, cpus: int = 1, gpus: float = 0, retries: int = 3) -> None:
        super().__init__()
        self.address, self.cpus, self.gpus, self.retries = address, cpus, gpus, retries

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """A run says what it has to say in its train.log; here only how it ended."""
        if find_spec("ray") is None:
            raise UserError("launcher=ray needs the ray package: pip install 'gptstar[ray]'")
        import ray

        console = Console()
        commands = [self._command(overrides, number) for number, overrides in enumerate(job_overrides, initial_job_idx)]
        ray.init(address=self.address, ignore_reinit_error=True, log_to_driver=False)
        try:
            task = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=self.retries)(_run)
            threads = {"OMP_NUM_THREADS": str(self.cpus)}
            waiting = {
                task.remote(command, os.getcwd(), {**threads, **self._environment()}): number
                for number, command in enumerate(commands)
            }
            codes: dict[int, int] = {}
            while waiting:
                done, _ = ray.wait([*waiting])
                for each in done:
                    number = waiting.pop(each)
                    try:
                        codes[number] = ray.get(each)
                    except ray.exceptions.RayError as error:
                        console.print(f"run {number + 1}: {type(error).__name__}", markup=False)
                        codes[number] = 1
                    console.print(
                        f"run {number + 1} of {len(commands)} ended with code {codes[number]}: {commands[number][-1]}",
                        markup=False,
                        highlight=False,
                        soft_wrap=True,
                    )
        finally:
            ray.shutdown()
        return [returned(codes[number]) for number in range(len(commands))]


def _run(command: list[str], folder: str, environment: dict[str, str]) -> int:
    """On the node that Ray has picked, which says which GPUs are the task's."""
    told = {key: value for key, value in os.environ.items() if key.startswith(("CUDA_", "RAY_"))}
    return subprocess.run(command, cwd=folder, env={**environment, **told}, preexec_fn=end_with_parent).returncode
