"""Trials on a Ray cluster, local or existing: one trial an actor, which ends with it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gentletune.core.errors import UserError
from gentletune.core.recipe import Processes
from gentletune.core.threads import VARIABLES
from gentletune.sweeps.plan import Resources
from gentletune.sweeps.store import Finished, Job, record_death, run_job

_CARRIED = ("GENTLETUNE_", "HF_", "XDG_CACHE_HOME", "TOKENIZERS_", *VARIABLES)
_CPUS = 2  # of a trial without GPUs that says nothing else


class RayExecutor:
    """Runs jobs as Ray actors. The study directory and the cache must be the same everywhere on the cluster.

    Raises `UserError` where ray is not installed, the cluster does not answer, or no node could ever run a trial.
    """

    def __init__(
        self,
        resources: Resources,
        workers: int | None = None,
        address: str | None = None,
        processes: Sequence[Processes] = (),
    ) -> None:
        try:
            import ray
        except ImportError as error:
            raise UserError("executor ray needs ray; pip install 'ray[default]'") from error
        self.ray: Any = ray
        self.mine = not ray.is_initialized()
        if self.mine:
            try:
                ray.init(address=address, include_dashboard=False if address is None else None,
                         log_to_driver=False, logging_level=logging.ERROR)  # fmt: skip
            except (ConnectionError, ValueError, RuntimeError) as error:
                problem = str(error).strip().splitlines()[0]
                raise UserError(
                    f"no Ray cluster at '{address or 'this machine'}' ({problem}); give --ray-address"
                ) from error
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        gpus, cpus = (max((int(node.get(kind, 0)) for node in nodes), default=0) for kind in ("GPU", "CPU"))
        self.gpus = resources.gpus_of(gpus, processes)
        self.cpus = resources.cpus or (1 if self.gpus else min(_CPUS, max(cpus, 1)))
        fits = sum(self._trials_on(node) for node in nodes)
        if fits == 0:  # a trial and its ranks run on one node
            self.close()
            raise UserError(
                f"resources: a trial wants {self.cpus} CPUs and {self.gpus} GPUs of one node, and the Ray cluster's "
                f"have at most {cpus} and {gpus}; lower them"
            )
        self.slots = min(workers or fits, fits)
        self.running: dict[Any, tuple[Job, Any]] = {}

    def _trials_on(self, node: Mapping[str, float]) -> int:
        by_cpus = int(node.get("CPU", 0)) // self.cpus
        return min(by_cpus, int(node.get("GPU", 0)) // self.gpus) if self.gpus else by_cpus

    def start(self, job: Job) -> None:
        """A new actor for the job."""
        carried = {key: value for key, value in os.environ.items() if key.startswith(_CARRIED)}
        actor = self.ray.remote(_Trial).options(
            num_cpus=self.cpus, num_gpus=self.gpus, max_restarts=0, runtime_env={"env_vars": carried}
        ).remote(str(Path.cwd()), self.cpus)  # fmt: skip
        self.running[actor.run.remote(job)] = (job, actor)

    def finished(self) -> Finished:
        """The next job to end; its actor ends with it."""
        (ready, *_), _ = self.ray.wait(list(self.running), num_returns=1)
        job, actor = self.running.pop(ready)
        try:
            found: Finished = self.ray.get(ready)
        except self.ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines() or [""]
            return record_death(job, f"the Ray actor died ({type(error).__name__}: {lines[0]})")
        finally:
            self.ray.kill(actor)
        return found

    def close(self) -> None:
        """End the actors, and the local cluster that was started for them."""
        for _, actor in getattr(self, "running", {}).values():
            self.ray.kill(actor)
        if self.mine:
            self.ray.shutdown()


class _Trial:
    """What runs on the cluster."""

    def __init__(self, directory: str, threads: int) -> None:
        import torch

        from gentletune.lm.device import settle_memory

        os.chdir(directory)  # paths in recipes may be relative
        torch.set_num_threads(threads)
        settle_memory()

    def run(self, job: Job) -> Finished:
        from gentletune.core.cache import Shared

        return run_job(job, Shared())
