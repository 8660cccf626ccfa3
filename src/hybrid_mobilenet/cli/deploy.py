"""The commands `export`, `benchmark` and `web`: models in other runtimes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..deploy.targets import CALIBRATED, FILES
from .options import DeviceOption, JsonOption, ModelArgument, parse_choices, parse_counts
from .output import TABLE_WIDTH, console, print_json, report_problems, table

if TYPE_CHECKING:
    from rich.table import Table

    from ..data.dataset import ImageDataset
    from ..network.model import HybridMobileNet
    from .display import RunDisplay


def export(
    model: ModelArgument,
    *,
    to: Annotated[
        list[str] | None,
        typer.Option(metavar="TARGET,...", help=f"What to export to, separated by commas: {', '.join(FILES)}."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Data, as for train: int8 is calibrated on its training images, and every file is evaluated on its "
            "test images."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the files.", show_default="MODEL/export")] = None,
    as_json: JsonOption = False,
) -> None:
    """Export a model to files for other runtimes.

    An exported file takes uint8 images and returns logits and probabilities:
    normalisation and softmax are part of the graph, and the class names are
    in the metadata. web is a folder with a page that runs the model in a
    browser; see hybrid-mobilenet web --help.

    Before a file is written, it is run and compared with PyTorch. It is
    compared on the test images of --data, or else on the built-in digits.

    int8 files are calibrated on training images: those of --data, or else
    those that the model was trained on.

    Examples:
      hybrid-mobilenet export runs/digits --to onnx
      hybrid-mobilenet export runs/digits --to onnx,onnx-int8 --data digits
      hybrid-mobilenet export runs/digits --to web
    """
    targets = parse_choices("--to", to, FILES)
    if not targets:
        raise ValueError(f"--to is missing: give one or more of {', '.join(FILES)}, as in --to onnx,web")

    from ..common.memory import keep_freed_memory
    from ..deploy.deployed import ExportError
    from ..deploy.export import export as export_target
    from ..deploy.runtimes import RuntimeFileError
    from ..network.model import HybridMobileNet
    from ..training.evaluate import evaluate
    from .display import RunDisplay

    keep_freed_memory()
    network = HybridMobileNet.from_pretrained(model)
    folder = out or (Path(model) if Path(model).is_dir() else Path()) / "export"
    results: list[dict[str, Any]] = []
    problems: list[str] = []
    with RunDisplay(shown=not as_json) as display:
        images = read_images(network, model, data, is_calibrated=bool(CALIBRATED & set(targets)), display=display)
        accuracy, count = None, 0
        if images.test is not None:
            count = len(images.test)
            accuracy = evaluate(network, images.test, on_images=display.counter("PyTorch", count)).accuracy
        for target in targets:
            done = display.counter(f"exporting to {target}", count)
            try:
                if target in CALIBRATED and images.calibration is None:
                    raise ExportError(images.not_calibrated)
                exported = export_target(
                    network, target, folder, calibration=images.calibration, test=images.test, on_images=done
                )
            except (ExportError, RuntimeFileError) as error:  # continue with the other targets
                problems.append(f"{target}: {error}")
            else:
                results.append(exported.record())
    if as_json:
        print_json({"model": model, "data": data, "accuracy": accuracy, "files": results})
    elif results:
        console(TABLE_WIDTH).print(export_table(results, accuracy))
    report_problems(problems)


@dataclass(frozen=True)
class ExportImages:
    """The images that an export uses.

    Attributes:
        test: images to evaluate every file on, or None without --data.
        calibration: training images for int8, or None.
        not_calibrated: why `calibration` is None.
    """

    test: ImageDataset | None
    calibration: ImageDataset | None
    not_calibrated: str


def read_images(
    network: HybridMobileNet, model: str, data: str | None, *, is_calibrated: bool, display: RunDisplay
) -> ExportImages:
    """Read test images from `data`, and calibration images from there or from what the model was trained on.

    Raises:
        DataError, OSError: if `data` is given and cannot be read.
    """
    from ..data.images import DataError
    from ..data.splits import load_data
    from ..deploy.classify import image_shape, load_test_images, recorded_options

    size, channels = image_shape(network)
    skip_bad = bool(network.training_record.get("skip_bad"))
    test, is_whole = None, False
    record = network.training_record
    options = recorded_options(record, data)
    if data is not None:
        evaluated = load_test_images(data, model, network, options, skip_bad, display.on_data)
        test, is_whole = evaluated.images, evaluated.which == "all"
    source = data or record.get("data")
    not_calibrated = "it is calibrated on training images: name them with --data"
    if not is_calibrated or source is None:
        return ExportImages(test, None, not_calibrated)
    try:
        splits = load_data(
            source, image_size=size, channels=channels, skip_bad=skip_bad, progress=display.on_data, **asdict(options)
        )
    except (DataError, OSError) as error:
        if data is not None:
            raise
        reason = f"{not_calibrated}. The model was trained on {source!r}, which cannot be read from here ({error})"
        return ExportImages(test, None, reason)
    # Data without a test split is tested whole, except for the images that int8 is calibrated on.
    return ExportImages(splits.test if is_whole else test, splits.train, "")


def export_table(results: Sequence[Mapping[str, Any]], accuracy: float | None) -> Table:
    """The files that were exported, as records of `deploy.export.Exported`, and PyTorch's accuracy."""
    rows = table("File", "Size", "Logits differ by", "Accuracy", "PyTorch's", "One image", left=1)
    for result in results:
        accuracies = ("-" if share is None else f"{share:.2%}" for share in (result["accuracy"], accuracy))
        rows.add_row(
            result["path"],
            f"{result['size'] / 1000:,.0f} kB",
            f"{result['parity']['difference']:.1e}",
            *accuracies,
            f"{result['microseconds']:,.0f} us",
        )
    return rows


def benchmark(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL", help="Run folders, exported files, or models on the Hub.")
    ],
    *,
    threads: Annotated[
        list[str] | None,
        typer.Option(metavar="N,...", help="Numbers of threads for one image, separated by commas.", show_default="1"),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Rounds of measurements. In each, every model has a turn.")] = 20,
    device: DeviceOption = "auto",
    out: Annotated[Path, typer.Option(help="Folder for benchmark.json and benchmark.png.")] = Path("runs/benchmark"),
    as_json: JsonOption = False,
) -> None:
    """Measure the speed, size and memory of models.

    Latency is measured on one image at a time, and throughput on batches. For a
    run folder, PyTorch is measured on --device, and each file in the folder's
    export/ in its own runtime on the CPU. The models take turns, so that a slow
    moment of the machine does not affect just one model.

    The column FMP is the share of the latency that plain max pooling to the
    same sizes would save, in ONNX Runtime on one thread.

    Examples:
      hybrid-mobilenet benchmark runs/digits
      hybrid-mobilenet benchmark runs/digits --threads 1,2
      hybrid-mobilenet benchmark runs/digits/export/model.onnx other.onnx
    """
    counts = parse_counts("--threads", threads, limit=os.cpu_count() or 1) or (1,)
    if rounds < 1:
        raise ValueError(f"--rounds is {rounds}, but must be 1 or more")

    from ..common.devices import choose_device
    from ..common.files import write_atomically
    from ..deploy.benchmark import benchmark as measure
    from ..deploy.benchmark import environment, expand
    from ..deploy.plots import draw_latencies
    from .display import RunDisplay

    choose_device(device)
    sources = expand(models)
    out.mkdir(parents=True, exist_ok=True)
    with RunDisplay(shown=not as_json) as display:
        done = display.counter("measuring", len(counts) * (rounds + len(sources)), unit="turns")
        measurements = [asdict(each) for each in measure(sources, counts, rounds, done, device)]
    record = {"environment": environment(), "rounds": rounds, "measurements": measurements}
    write_atomically(out / "benchmark.json", (json.dumps(record, indent=2) + "\n").encode())
    draw_latencies(measurements, out / "benchmark.png")
    if as_json:
        print_json(record)
    else:
        console(TABLE_WIDTH).print(benchmark_table(measurements), f"written to {out}", sep="\n")


def benchmark_table(measurements: Sequence[Mapping[str, Any]]) -> Table:
    """The measurements, as records of `deploy.benchmark.Measurement`."""
    rows = table(
        "Model", "Runtime", "Threads", "One image, us", "Quartiles", "Images/s", "Size, kB", "Memory, MB", "FMP",
        left=2,
    )  # fmt: skip
    for record in measurements:
        median, lower, upper = (f"{1e6 * record['latency'][key]:,.0f}" for key in ("median", "lower", "upper"))
        share = record["pooling_share"]
        rows.add_row(
            record["model"],
            record["runtime"],
            str(record["threads"]),
            median,
            f"{lower} to {upper}",
            f"{record['images_per_second']:,.0f}",
            f"{record['bytes'] / 1000:,.0f}",
            f"{record['peak_bytes'] / 1e6:,.1f}",
            "-" if share is None else f"{share:.1%}",
        )
    return rows


def web(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A page made by export --to web.")],
    *,
    host: Annotated[str, typer.Option(help="Address to serve on; 0.0.0.0 for the whole network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 for any free port.")] = 8000,
    as_json: JsonOption = False,
) -> None:
    """Serve an exported page to browsers, until Ctrl-C.

    Any static file server can serve the page. This one sends the headers that
    browsers require to run the model on several threads.

    Browsers allow the camera on pages from this machine. On a page from another
    address they allow it over HTTPS only.

    Examples:
      hybrid-mobilenet export runs/digits --to web
      hybrid-mobilenet web runs/digits/export/web
    """
    from ..deploy.web.serve import PageServer

    with PageServer(folder, host, port) as server:
        if as_json:
            print(json.dumps({"url": server.url}))  # one line, which a script can read while the server runs
        else:
            console().print(f"{folder} is at {server.url} until Ctrl-C", soft_wrap=True)
        sys.stdout.flush()
        with suppress(KeyboardInterrupt):  # the usual way to stop it
            server.serve_forever()
