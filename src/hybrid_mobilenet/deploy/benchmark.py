"""Latency, throughput, size and memory of models in every runtime, taking turns on the same threads."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..common import machine
from ..common.devices import CPU, choose_device
from ..network.model import HybridMobileNet
from .latency import Latency, random_images, seconds_per_call, spread
from .runtimes import FileClassifier, OnnxClassifier, Outputs, can_run, is_exported, open_file

#: Images at once for the throughput.
BATCH = 64

#: Writing 5 here resets the high-water mark of this process's memory.
CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Measurement:
    """One model in one runtime on so many threads.

    Attributes:
        model: as it was named.
        runtime: that ran it.
        threads: for one image or batch.
        latency: seconds for one image.
        images_per_second: `BATCH` images at once, the median.
        bytes: of the file or weights.
        peak_bytes: resident memory that a process of its own needs at most for the runtime, the model and one image,
            besides Python and PyTorch.
        pooling_share: of the latency, what plain max pooling to the same sizes would save in place of fractional max
            pooling, the median of the rounds; None where there is none, elsewhere than in ONNX Runtime, and on several
            threads, on which two networks so alike disturb each other more than they differ.
    """

    model: str
    runtime: str
    threads: int
    latency: Latency
    images_per_second: float
    bytes: int
    peak_bytes: int
    pooling_share: float | None


class TorchClassifier(FileClassifier):
    """A model in eager PyTorch, which the others are compared with. Running it sets torch's number of threads."""

    runtime, module, extra = "PyTorch", "torch", ""

    def __init__(self, source: str, threads: int, device: torch.device) -> None:
        self.model = HybridMobileNet.from_pretrained(source).to(device)
        self.class_names, self.image_size = self.model.class_names, self.model.network.image_size
        self.in_channels, self.threads, self.device = self.model.network.in_channels, threads, device

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        torch.set_num_threads(self.threads)
        with torch.no_grad():
            logits = self.model(torch.from_numpy(images).permute(0, 3, 1, 2).to(self.device))
            return logits.cpu().numpy(), logits.softmax(1).cpu().numpy()


def expand(sources: Sequence[str]) -> list[str]:
    """The sources, and after each run folder the files in its folder export/ whose runtimes are installed."""
    expanded: list[str] = []
    for source in sources:
        files = [] if is_exported(source) else sorted(filter(can_run, Path(source, "export").glob("*")))
        expanded += [source, *map(str, files)]
    return list(dict.fromkeys(expanded))


def open_source(source: str, threads: int, device: torch.device) -> FileClassifier:
    """An exported file in its runtime, on the CPU, or a model in PyTorch, on `device`."""
    return open_file(Path(source), threads) if is_exported(source) else TorchClassifier(source, threads, device)


def benchmark(
    sources: Sequence[str],
    threads: Sequence[int],
    rounds: int = 20,
    advance: Callable[[int], None] | None = None,
    device: str = "auto",
) -> list[Measurement]:
    """Measure models one after another in every round, so that what slows the machine slows all alike.

    Args:
        sources: exported files, run folders, or models on the Hub.
        threads: numbers of threads.
        rounds: medians and quartiles are taken over.
        advance: called with 1 after each round and each measurement of memory, ``len(threads) * (rounds + sources)``.
        device: of the models in PyTorch, as `choose_device` takes it; exported files run on the CPU.

    Raises:
        ValueError: where a source is not a model, its runtime is not installed, or the device is not there.
    """
    chosen = choose_device(device)
    before = torch.get_num_threads()
    try:
        return _measurements(sources, threads, rounds, advance or (lambda _count: None), chosen)
    finally:
        torch.set_num_threads(before)


def _measurements(
    sources: Sequence[str], threads: Sequence[int], rounds: int, done: Callable[[int], None], device: torch.device
) -> list[Measurement]:
    measurements = []
    for count in threads:
        classifiers = {source: open_source(source, count, device) for source in sources}
        one: dict[str, list[float]] = {source: [] for source in sources}
        many: dict[str, list[float]] = {source: [] for source in sources}
        plain = {
            source: OnnxClassifier(content, threads=count)
            for source, classifier in classifiers.items()
            if count == 1 and isinstance(classifier, OnnxClassifier) and (content := with_plain_pooling(Path(source)))
        }
        one_plain: dict[str, list[float]] = {source: [] for source in plain}
        for _ in range(rounds):
            for source, classifier in classifiers.items():  # apart from batches: the sooner, the more alike the machine
                one[source].append(seconds_per_call(classifier, random_images(classifier, 1)))
                if source in plain:
                    one_plain[source].append(seconds_per_call(plain[source], random_images(classifier, 1)))
            for source, classifier in classifiers.items():
                many[source].append(seconds_per_call(classifier, random_images(classifier, BATCH)) / BATCH)
            done(1)
        for source, classifier in classifiers.items():
            measurements.append(
                Measurement(
                    source,
                    named(classifier),
                    count,
                    spread(one[source]),
                    1 / spread(many[source]).median,
                    size(source),
                    peak_memory(source, count, device),
                    share_saved(one[source], one_plain[source]) if source in plain else None,
                )
            )
            done(1)
    return measurements


def named(classifier: FileClassifier) -> str:
    """The runtime, and where it is not the CPU, its device."""
    on = f" on {classifier.device}" if isinstance(classifier, TorchClassifier) and classifier.device != CPU else ""
    return classifier.runtime + on


def share_saved(seconds: Sequence[float], without: Sequence[float]) -> float:
    """The median over the rounds: the two sides of a round are so near in time that the machine is alike for both."""
    return 1 - float(np.median(np.divide(without, seconds)))


def size(source: str) -> int:
    """Bytes of a file, or of the weights of a model."""
    if is_exported(source):
        return Path(source).stat().st_size
    weights = HybridMobileNet.from_pretrained(source).state_dict().values()
    return sum(tensor.numel() * tensor.element_size() for tensor in weights)


def peak_memory(source: str, threads: int, device: torch.device) -> int:
    """Bytes of the host by which a process of its own grows to load a model and classify one image."""
    # Spawned, not forked: a copy of this process would have its memory already.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_growth, source, threads, device).result()


def _growth(source: str, threads: int, device: torch.device) -> int:
    before, _ = _resident()
    # From here on Linux keeps a new high-water mark: importing this module has left one that hides small models.
    if CLEAR.exists():
        CLEAR.write_text("5", encoding="ascii")
    classifier = open_source(source, threads, device)
    for _ in range(3):
        classifier.run(random_images(classifier, 1))
    return _resident()[1] - before


def _resident() -> tuple[int, int]:
    """Resident memory of this process and its high-water mark, in bytes; elsewhere than on Linux only the mark."""
    status = Path("/proc/self/status")
    if not status.exists():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak, peak
    lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
    now, mark = (1024 * int(lines[key].split()[0]) for key in ("VmRSS", "VmHWM"))
    return now, mark


def with_plain_pooling(file: Path) -> bytes | None:
    """The ONNX network of a file with plain max pooling to the same sizes in place of fractional max pooling.

    What it predicts is worth nothing, but it takes the time of the network without what the fractional regions cost:
    their pixels are gathered, and the layout of the maps changed for that. None where there are no such regions.
    """
    import onnx

    from .deployed import network_of

    model = onnx.load(file)
    network = network_of({entry.key: entry.value for entry in model.metadata_props})
    nodes = list(model.graph.node)
    for layer in network.layers if network else ():
        old = [node for node in nodes if node.name == layer.name or node.name.startswith(f"{layer.name}.")]
        if layer.kind != "fractional_max_pool" or len(old) == 1:
            continue  # where every region has 2x2 pixels, that is plain max pooling
        # Two pixels so far apart that no padding or stride is needed.
        apart = [n_in - n_out for n_in, n_out in zip(layer.in_size, layer.out_size, strict=True)]
        plain = onnx.helper.make_node(
            "MaxPool", old[0].input[:1], [layer.name], name=layer.name, kernel_shape=[2, 2], dilations=apart
        )
        place = nodes.index(old[0])
        nodes = [*nodes[:place], plain, *(node for node in nodes[place:] if node not in old)]
    if nodes == list(model.graph.node):
        return None
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    content: bytes = model.SerializeToString()
    return content


def environment() -> dict[str, Any]:
    """Machine and versions, for the record."""
    versions = {}
    for package in ("torch", "onnxruntime", "executorch", "ai-edge-litert"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return machine.environment() | {"versions": versions}
