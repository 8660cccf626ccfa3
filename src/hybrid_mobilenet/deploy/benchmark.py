"""Latency, throughput, size and memory of models in all runtimes, measured in turns on the same machine."""

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
from ..network.architecture import Network
from ..network.model import HybridMobileNet
from .latency import Latency, random_images, seconds_per_call, spread
from .runtimes import FileClassifier, OnnxClassifier, Outputs, RuntimeFileError, can_run, is_exported, open_file

#: Batch size for the throughput.
BATCH = 64

#: Writing 5 to this file resets the high-water mark of the process's resident memory.
CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Measurement:
    """One model in one runtime with one number of threads.

    Attributes:
        model: path or name of the model.
        runtime: name of the runtime.
        threads: number of threads per call.
        latency: seconds for one image.
        images_per_second: median throughput at batch size `BATCH`.
        bytes: size of the file, or of the weights.
        peak_bytes: peak resident memory of the runtime, the model and one image in a process of their own, without
            Python and PyTorch.
        pooling_share: fraction of the latency that plain max pooling to the same sizes would save over fractional max
            pooling, the median over the rounds. None without fractional pooling, outside ONNX Runtime, and on several
            threads, where the noise is larger than the difference.
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
    """A model in eager PyTorch, the baseline of the comparison. Running it sets torch's number of threads."""

    runtime, module, extra = "PyTorch", "torch", ""

    def __init__(self, model: HybridMobileNet, threads: int, device: torch.device) -> None:
        self.model = model.to(device)
        self.class_names, self.image_size = self.model.class_names, self.model.network.image_size
        self.in_channels, self.threads, self.device = self.model.network.in_channels, threads, device

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        torch.set_num_threads(self.threads)
        with torch.no_grad():
            logits = self.model(torch.from_numpy(images).permute(0, 3, 1, 2).to(self.device))
            return logits.cpu().numpy(), logits.softmax(1).cpu().numpy()


def expand(sources: Sequence[str]) -> list[str]:
    """The sources, with each run folder followed by the files in its folder export/ whose runtimes are installed."""
    expanded: list[str] = []
    for source in sources:
        files = [] if is_exported(source) else sorted(filter(can_run, Path(source, "export").glob("*")))
        expanded += [source, *map(str, files)]
    return list(dict.fromkeys(expanded))


def open_model(source: str, threads: int, device: torch.device) -> FileClassifier:
    """An exported file in its runtime on the CPU, or a model in PyTorch on `device`."""
    if is_exported(source):
        return open_file(Path(source), threads)
    return TorchClassifier(HybridMobileNet.from_pretrained(source), threads, device)


def open_untrained(network: Network) -> FileClassifier:
    """A network with random weights on one thread: in ONNX Runtime if that is installed, otherwise in PyTorch."""
    model = HybridMobileNet(**network.choices()).eval()
    try:
        OnnxClassifier.require(exporting=True)
    except RuntimeFileError:
        return TorchClassifier(model, 1, CPU)
    from .onnx import onnx_bytes

    return OnnxClassifier(onnx_bytes(model), threads=1)


def untrained_latencies(
    networks: Sequence[Network], rounds: int, advance: Callable[[int], None] | None = None
) -> tuple[str, list[Latency]]:
    """Measure the latency of networks before they are trained, on one image and one CPU thread, in turns.

    Args:
        networks: the networks.
        rounds: number of rounds, over which medians and quartiles are taken.
        advance: called with 1 after each measurement, ``rounds * len(networks)`` times.

    Returns:
        The name of the runtime, and the latency of each network.
    """
    before = torch.get_num_threads()
    try:
        classifiers = [open_untrained(network) for network in networks]
        seconds: list[list[float]] = [[] for _ in classifiers]
        for _ in range(rounds):
            for classifier, measured in zip(classifiers, seconds, strict=True):
                measured.append(seconds_per_call(classifier, random_images(classifier, 1)))
                if advance is not None:
                    advance(1)
    finally:
        torch.set_num_threads(before)
    return classifiers[0].runtime, list(map(spread, seconds))


def benchmark(
    sources: Sequence[str],
    threads: Sequence[int],
    rounds: int = 20,
    advance: Callable[[int], None] | None = None,
    device: str = "auto",
) -> list[Measurement]:
    """Measure all models in every round, so that a slow machine slows all of them alike.

    Args:
        sources: exported files, run folders, or models on the Hub.
        threads: the numbers of threads to measure with.
        rounds: number of rounds, over which medians and quartiles are taken.
        advance: called with 1 after each round and after each measurement of memory, in all
            ``len(threads) * (rounds + len(sources))`` times.
        device: device of the models in PyTorch, as for `choose_device`. Exported files run on the CPU.

    Raises:
        ValueError: if a source is not a model, its runtime is not installed, or the device is not available.
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
        classifiers = {source: open_model(source, count, device) for source in sources}
        one: dict[str, list[float]] = {source: [] for source in sources}
        many: dict[str, list[float]] = {source: [] for source in sources}
        plain = {
            source: OnnxClassifier(content, threads=count)
            for source, classifier in classifiers.items()
            if count == 1 and isinstance(classifier, OnnxClassifier) and (content := with_plain_pooling(Path(source)))
        }
        one_plain: dict[str, list[float]] = {source: [] for source in plain}
        for _ in range(rounds):
            for source, classifier in classifiers.items():  # before the batches, so that the machine has changed little
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
                    runtime_name(classifier),
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


def runtime_name(classifier: FileClassifier) -> str:
    """The runtime, with the device if it is not the CPU."""
    on = f" on {classifier.device}" if isinstance(classifier, TorchClassifier) and classifier.device != CPU else ""
    return classifier.runtime + on


def share_saved(seconds: Sequence[float], without: Sequence[float]) -> float:
    """The fraction saved, as the median over rounds: within a round the machine changes little."""
    return 1 - float(np.median(np.divide(without, seconds)))


def size(source: str) -> int:
    """Size in bytes of a file, or of the weights of a model."""
    if is_exported(source):
        return Path(source).stat().st_size
    weights = HybridMobileNet.from_pretrained(source).state_dict().values()
    return sum(tensor.numel() * tensor.element_size() for tensor in weights)


def peak_memory(source: str, threads: int, device: torch.device) -> int:
    """Bytes of host memory by which a fresh process grows to load a model and classify one image."""
    # Spawned: a forked process would start with the memory of this one.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_growth, source, threads, device).result()


def _growth(source: str, threads: int, device: torch.device) -> int:
    before, _ = _resident()
    # Reset the high-water mark: the one from importing this module would hide small models.
    if CLEAR_REFS.exists():
        CLEAR_REFS.write_text("5", encoding="ascii")
    classifier = open_model(source, threads, device)
    for _ in range(3):
        classifier.run(random_images(classifier, 1))
    return _resident()[1] - before


def _resident() -> tuple[int, int]:
    """Resident memory of this process and its high-water mark in bytes; outside Linux, the mark twice."""
    status = Path("/proc/self/status")
    if not status.exists():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak, peak
    lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
    now, mark = (1024 * int(lines[key].split()[0]) for key in ("VmRSS", "VmHWM"))
    return now, mark


def with_plain_pooling(file: Path) -> bytes | None:
    """The ONNX network of a file, with plain max pooling to the same sizes instead of fractional max pooling.

    Its predictions are meaningless. Its latency is that of the network without the cost of fractional regions, which
    are the gathers and the change of memory layout. None if the network has no such regions.
    """
    import onnx

    from .deployed import network_of

    model = onnx.load(file)
    network = network_of({entry.key: entry.value for entry in model.metadata_props})
    nodes = list(model.graph.node)
    for layer in network.layers if network else ():
        old = [node for node in nodes if node.name == layer.name or node.name.startswith(f"{layer.name}.")]
        if layer.kind != "fractional_max_pool" or len(old) == 1:
            continue  # regions of 2x2 pixels: already plain max pooling
        # A dilated 2x2 window gives the output size without padding or stride.
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
    """The machine and the versions of the runtimes, for the record."""
    versions = {}
    for package in ("torch", "onnxruntime", "executorch", "ai-edge-litert"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return machine.environment() | {"versions": versions}
