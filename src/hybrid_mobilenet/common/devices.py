"""The device to compute on. A GPU is used automatically."""

from __future__ import annotations

import torch

CPU = torch.device("cpu")


def choose_device(name: str = "auto", processes: int = 1) -> torch.device:
    """The torch device of a name.

    Args:
        name: "cpu"; "cuda" for the first GPU, or "cuda:1" and so on; "mps" for the GPU of Apple silicon; or "auto": a
            GPU if there is one, else the CPU.
        processes: number of processes that train together. Each of several takes a GPU of its own, or all take the CPU.

    Raises:
        ValueError: if the name is not that of a device, or the device is not available.
    """
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    available = ["cpu", *gpus] + ["mps"] * (torch.backends.mps.is_available() and processes == 1)
    if name == "auto":
        return torch.device("mps" if "mps" in available else available[:2][-1])
    wanted = "cuda:0" if name == "cuda" else name
    kind, _, number = wanted.partition(":")
    if wanted not in ("cpu", "mps") and not (kind == "cuda" and number.isdecimal()):
        raise ValueError(
            f"--device is {name!r}, but must be auto, cpu, cuda, mps, or one of several GPUs, such as cuda:1"
        )
    if processes > 1 and name not in ("cpu", "cuda"):
        raise ValueError(
            f"--device is {name!r}, but each of {processes} processes takes a GPU of its own, or all take the CPU: "
            "leave it out, or give cuda or cpu"
        )
    if wanted not in available:
        raise ValueError(
            f"--device is {name!r}, but PyTorch finds only {' and '.join(available)} here: leave it out, or give "
            f"{' or '.join(available)}"
        )
    return torch.device(wanted)
