"""A sweep on a Ray cluster of one or many machines, with one task per run.

Every machine needs this package, the data, and the folders of records and runs at the same paths, for example on a
network drive. If a worker or machine dies, its task is restarted elsewhere and resumes from the checkpoint in the run's
folder.

Ray is an extra: pip install 'hybrid-mobilenet[ray]'.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ...common.memory import keep_freed_memory
from ...common.signals import stop_signals
from ...data.sources import DATA_VARIABLE
from ...training.setup import Interrupted
from ..grid import Run
from ..reproduce import STOPPED, DataCache, Folders, OnState, RunState, reproduce_run

#: How many times a task is restarted if its worker dies.
RETRIES = 3

#: Seconds between checks of the tasks, and seconds that they have to save their state after an interrupt.
POLL_SECONDS, SAVE_SECONDS = 0.5, 120.0


def run_on_ray(
    runs: Sequence[Run], folders: Folders, on_state: OnState, *, cpus: float, gpus: float, address: str | None = None
) -> None:
    """Reproduce runs as tasks of a Ray cluster.

    Args:
        runs: the runs. Ray starts them in this order, as many at once as the cluster has resources for.
        folders: the folders, which all machines share.
        on_state: called in this process with each new state of a run.
        cpus: CPUs, and so threads, per run.
        gpus: GPUs per run: with 0.25, four runs share a GPU; with 0, they run on CPUs.
        address: address of the cluster. None for the one of RAY_ADDRESS, or one running here, or else a new one here.

    Raises:
        ValueError: if Ray is not installed, no cluster answers at `address`, or no machine has these resources.
        Interrupted: after Ctrl-C or SIGTERM. The state of all runs is saved.
    """
    try:
        import ray
        from ray.util.queue import Queue
    except ImportError:
        raise ValueError("--engine ray needs Ray: pip install 'hybrid-mobilenet[ray]'") from None
    shared = Folders(folders.results.absolute(), folders.runs.absolute())
    data = os.environ.get(DATA_VARIABLE)
    environment = {DATA_VARIABLE: str(Path(data).absolute())} if data else {}
    _check_connection(address or os.environ.get("RAY_ADDRESS", ""))
    try:
        ray.init(
            address,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env={"env_vars": environment},
        )
    except ConnectionError as error:
        raise ValueError(f"no Ray cluster answers at --address {address}: {error}") from error
    try:
        check_resources(ray.nodes(), cpus, gpus)
        states = Queue(actor_options={"num_cpus": 0})
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(_task)
        working = {task.remote(run, shared, max(1, int(cpus)), states): run for run in runs}
        with stop_signals() as stop:
            while working:
                done, _ = ray.wait(list(working), timeout=POLL_SECONDS)
                if stop.is_set():
                    for ref in working:
                        ray.cancel(ref)
                    ray.wait(list(working), num_returns=len(working), timeout=SAVE_SECONDS)
                    raise Interrupted
                for state in states.get_nowait_batch(states.qsize()):
                    on_state(state)
                for ref in done:
                    run = working.pop(ref)
                    try:
                        ray.get(ref)
                    except ray.exceptions.RayError as error:
                        reason = str(error).strip().partition("\n")[0]
                        on_state(RunState(run.name, "failed", message=f"{reason}: run again to resume it"))
    finally:
        ray.shutdown()


def _check_connection(address: str) -> None:
    """Check that the cluster answers: Ray itself retries for minutes and then ends the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ValueError(
            f"no Ray cluster answers at {address} ({error.strerror or error}): start it with `ray start --head`, or "
            "leave out --address and RAY_ADDRESS for a cluster of this machine"
        ) from None


def check_resources(nodes: Sequence[dict[str, Any]], cpus: float, gpus: float) -> None:
    """Check that some machine has enough CPUs and GPUs for a run; otherwise its task would wait for ever.

    Raises:
        ValueError: if none has.
    """
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    if not any(each.get("CPU", 0) >= cpus and each.get("GPU", 0) >= gpus for each in resources):
        largest = ", ".join(f"{each.get('CPU', 0):g} CPUs and {each.get('GPU', 0):g} GPUs" for each in resources)
        raise ValueError(
            f"--cpus is {cpus:g} and --gpus {gpus:g}, but no machine of the cluster has both ({largest}): ask for less"
        )


def _task(run: Run, folders: Folders, threads: int, states: Any) -> None:
    """The task of a run, on a worker of the cluster."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    try:
        reproduce_run(run, folders, states.put, DataCache())
    except Interrupted:  # the worker was stopped from outside: an interrupted sweep reads no more states
        states.put(RunState(run.name, "failed", message=STOPPED))
