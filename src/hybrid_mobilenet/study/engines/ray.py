"""The runs of a sweep on a Ray cluster, of this machine alone or of many: one task per run.

Every machine needs this package, the data, and the folders of records and runs at the same paths, say on a network
drive. A task whose worker or machine dies is started again elsewhere, finds the run's folder, and goes on from its
checkpoint.

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
from ...training.run import Interrupted
from ..grid import Run
from ..reproduce import STOPPED, KeptData, Place, Report, RunState, carry_out

#: How often a task whose worker died is started again.
RETRIES = 3
#: Seconds between looks at what the tasks tell, and that they are given to save when the sweep is interrupted.
LOOK_EVERY, SAVE_WITHIN = 0.5, 120.0


def run_on_ray(
    runs: Sequence[Run], place: Place, report: Report, *, cpus: float, gpus: float, address: str | None = None
) -> None:
    """Carry out runs as tasks of a Ray cluster.

    Args:
        runs: what to carry out; Ray starts them in this order, as many at once as the cluster has room for.
        place: folders that all machines share.
        report: told by this process what the tasks tell.
        cpus: CPUs, and so threads, that each run is given.
        gpus: GPUs that each run is given: with 0.25 four runs share one, with 0 they run on CPUs.
        address: of the cluster; None for the one that RAY_ADDRESS names or that runs here, or else a new one here.

    Raises:
        ValueError: where Ray is not installed, there is no cluster at `address`, or no machine of it has these shares.
        Interrupted: after Ctrl-C or SIGTERM, with the state of all runs saved.
    """
    try:
        import ray
        from ray.util.queue import Queue
    except ImportError:
        raise ValueError("--engine ray needs Ray: pip install 'hybrid-mobilenet[ray]'") from None
    shared = Place(place.results.absolute(), place.runs.absolute())
    data = os.environ.get(DATA_VARIABLE)
    environment = {DATA_VARIABLE: str(Path(data).absolute())} if data else {}
    _check_answers(address or os.environ.get("RAY_ADDRESS", ""))
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
        _check_room(ray.nodes(), cpus, gpus)
        told = Queue(actor_options={"num_cpus": 0})
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(_task)
        working = {task.remote(run, shared, max(1, int(cpus)), told): run for run in runs}
        with stop_signals() as stop:
            while working:
                done, _ = ray.wait(list(working), timeout=LOOK_EVERY)
                if stop.is_set():
                    for ref in working:
                        ray.cancel(ref)
                    ray.wait(list(working), num_returns=len(working), timeout=SAVE_WITHIN)
                    raise Interrupted
                for state in told.get_nowait_batch(told.qsize()):
                    report(state)
                for ref in done:
                    run = working.pop(ref)
                    try:
                        ray.get(ref)
                    except ray.exceptions.RayError as error:
                        reason = str(error).strip().partition("\n")[0]
                        report(RunState(run.name, "failed", message=f"{reason}: run again to go on with it"))
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Ray itself tries for minutes, and then ends the process."""
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


def _check_room(nodes: Sequence[dict[str, Any]], cpus: float, gpus: float) -> None:
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    if not any(each.get("CPU", 0) >= cpus and each.get("GPU", 0) >= gpus for each in resources):
        largest = ", ".join(f"{each.get('CPU', 0):g} CPUs and {each.get('GPU', 0):g} GPUs" for each in resources)
        raise ValueError(
            f"--cpus is {cpus:g} and --gpus {gpus:g}, but no machine of the cluster has both ({largest}): ask for less"
        )


def _task(run: Run, place: Place, threads: int, told: Any) -> None:
    """What a worker of the cluster does."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    try:
        carry_out(run, place, told.put, KeptData())
    except Interrupted:  # by whoever stops the worker; the sweep itself does not listen any more
        told.put(RunState(run.name, "failed", message=STOPPED))
