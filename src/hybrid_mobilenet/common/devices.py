"""The device to compute on: the one that is named, or the same one for whatever computes where none is."""

from __future__ import annotations

import torch

CPU = torch.device("cpu")


def choose_device(name: str = "auto", processes: int = 1) -> torch.device:
    """The device of a name.

    Args:
        name: "cpu"; "cuda" for the first GPU, or "cuda:1" and so on; "mps", the GPU of Apple silicon; or "auto": the
            GPU where there is one, else the CPU.
        processes: that compute together. Several take the GPUs in turn, or all the CPU, and cannot share another.

    Raises:
        ValueError: where that is no device's name, or there is no such device.
    """
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    there = ["cpu", *gpus] + ["mps"] * (torch.backends.mps.is_available() and processes == 1)
    if name == "auto":
        return torch.device("mps" if "mps" in there else there[:2][-1])
    wanted = "cuda:0" if name == "cuda" else name
    kind, _, number = wanted.partition(":")
    if wanted not in ("cpu", "mps") and not (kind == "cuda" and number.isdecimal()):
        raise ValueError(
            f"--device is {name!r}, but must be auto, cpu, cuda, mps, or one of several GPUs, such as cuda:1"
        )
    if processes > 1 and name not in ("cpu", "cuda"):
        raise ValueError(
            f"--device is {name!r}, but of {processes} processes each takes a GPU of its own, or all the CPU: leave it "
            "out, or give cuda or cpu"
        )
    if wanted not in there:
        raise ValueError(
            f"--device is {name!r}, but here PyTorch finds {' and '.join(there)} alone: leave it out, or give "
            f"{' or '.join(there)}"
        )
    return torch.device(wanted)
