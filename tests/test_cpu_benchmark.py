"""The benchmark of `make bench`: the sides it compares, the limit it measures, and failures of a side."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from hybrid_mobilenet import resolve
from hybrid_mobilenet.network.architecture import Layer
from hybrid_mobilenet.network.cost import layer_mult_adds, network_mult_adds

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

#: Replaces Python with sides that start at once. The side FAILING fails in its round AT.
STUB = """#!/bin/sh
side=$2 round=0
fail() { echo "torch.Error: no luck" >&2; echo "Some advice." >&2; kill -ABRT $$; }
[ "$side $round" = "$FAILING $AT" ] && fail
printf '%s 1.0\\t7.5\\n' "$side"
while read -r steps; do
  round=$((round + 1))
  [ "$side $round" = "$FAILING $AT" ] && fail
  case $side in ours) echo 0.1;; good_pytorch) echo 0.3;; compiled_pytorch) echo 0.2;; *) echo 0.4;; esac
done
"""


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "python"
    path.write_text(STUB)
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))


def rows(sections: list[Any], title: str) -> list[dict[str, Any]]:
    (found,) = [section.rows for section in sections if section.title.startswith(title)]
    return list(found)


def measure(**others: Any) -> list[Any]:
    """The sections after a few rounds."""
    versions: set[str] = set()
    sections: list[Any] = import_module("training").measure(3, 1, None, versions, lambda: None, **others)
    assert "ours 1.0" in versions
    return sections


def test_good_pytorch_computes_what_plain_pytorch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, good = import_module("plain_pytorch"), import_module("good_pytorch")
    network, arguments = resolve("fmp", 0.25, 2), list[Any]()
    loss = float(plain.training_step(network, 16, 1)())
    step = plain.step
    monkeypatch.setattr(plain, "step", lambda *parts: (arguments.extend(parts), step(*parts))[1])  # type: ignore[func-returns-value]
    assert float(good.training_step(network, 16, 1)()) == pytest.approx(loss, rel=1e-3)
    model, optimizer, images, _ = arguments
    assert optimizer.defaults["fused"]
    maps = [images, *(parameter for parameter in model.parameters() if parameter.ndim == 4)]
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in maps)


@pytest.mark.slow
def test_a_worker_measures_a_side() -> None:
    workers = import_module("workers")
    with workers.Worker("good_pytorch", ("mobilenet", 0.25, 1, 2), 1) as worker:
        version, first = worker.warm_up()
        assert version == f"torch {torch.__version__}"
        assert first > 0
        assert 0 < worker(2) < 60


@pytest.mark.parametrize("threads", [1, 2])
def test_multiply_adds_are_computed_and_counted(threads: int) -> None:
    module = import_module("multiply_adds")
    sums = torch.zeros(threads, module.SUMS * module.WIDTH)
    module.multiply_adds(sums, 1000)
    assert torch.equal(sums, torch.full_like(sums, 1000))
    assert module.MULT_ADDS // sums.numel() * sums.numel() == pytest.approx(module.MULT_ADDS, rel=1e-6)


def test_least_mult_adds_of_a_step() -> None:
    training = import_module("training")
    network = resolve("mobilenet", 1.0, 1)
    least, whole = training.least_mult_adds(network), 3 * network_mult_adds(network)
    assert 0.9 * whole < least < whole - layer_mult_adds(network.layers[0])
    layer = Layer("depthwise", "depthwise", 8, 8, (2, 2), (2, 2), kernel=3)
    assert training._share_inside(layer) == pytest.approx(4 / 9)  # each pixel sees all four
    layer = Layer("conv", "convolution", 3, 8, (4, 4), (2, 2), kernel=3, stride=2)
    assert training._share_inside(layer) == pytest.approx((5 / 6) ** 2)  # padding above and on the left


@pytest.mark.usefixtures("stub")
def test_the_faster_of_eager_and_compiled_is_compared() -> None:
    sections = measure()
    for threads in ("1 thread", "2 threads"):
        for row in rows(sections, f"Training, images/s, batch 128, {threads}"):
            assert row["good PyTorch"] == pytest.approx(128 / 0.2)
            assert row["over good PyTorch"].value == pytest.approx(2)
            assert row["over plain PyTorch"].value == pytest.approx(4)
            assert row["Keras"] is row["over Keras"] is None
    for row in rows(sections, "Good PyTorch"):
        assert (row["counts"], row["first step, compiling, s"], row["torch.compile failed"]) == ("compiled", 7.5, None)


@pytest.mark.usefixtures("stub")
@pytest.mark.parametrize("at", [0, 2])
def test_eager_is_compared_if_torch_compile_aborts(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAILING", "compiled_pytorch")
    monkeypatch.setenv("AT", str(at))
    sections = measure()
    assert len(rows(sections, "Good PyTorch")) == 6
    for row in rows(sections, "Good PyTorch"):
        assert (row["compiled"], row["counts"]) == (None, "eager")
        assert row["torch.compile failed"] == "SIGABRT: torch.Error: no luck"
    for row in rows(sections, "Training, images/s, batch 128, 1 thread"):
        assert row["over good PyTorch"].value == pytest.approx(3)


@pytest.mark.usefixtures("stub")
def test_a_compilation_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("workers"), "WARM_UP_TIMEOUT", 1)
    Path(sys.executable).write_text("#!/bin/sh\nexec sleep 60\n")
    workers = import_module("workers")
    with workers.Worker("compiled_pytorch", (), 1, sys.executable) as worker:
        with pytest.raises(workers.WorkerError) as error:
            worker.warm_up()
        assert error.value.reason == "not warm after 1 s"


@pytest.mark.usefixtures("stub")
def test_a_failure_of_any_other_side_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAILING", "plain_pytorch")
    monkeypatch.setenv("AT", "1")
    with pytest.raises(RuntimeError, match=r"plain_pytorch worker ended early, SIGABRT: torch.Error: no luck:\n"):
        measure(compiling=False)


def result(training: Any, **seconds: float) -> Any:
    """A result of three rounds on one and on two threads, with these seconds per step of each side."""
    sides = {"ours": 0.1, "plain_pytorch": 0.4, "good_pytorch": 0.3, "matrix_product": 0.05, "multiply_adds": 0.04}
    times = {(side, threads): [time] * 3 for side, time in (sides | seconds).items() for threads in (1, 2)}
    return training.Result(times)


@pytest.mark.parametrize("faster", ["matrix_product", "multiply_adds"])
def test_the_limit_is_the_faster_of_two(faster: str) -> None:
    training = import_module("training")
    comparison = training.COMPARISONS[0]
    work = 128 * training.least_mult_adds(resolve(comparison.family, comparison.alpha, comparison.delta))
    sections = training.sections({comparison: result(training, **{faster: 0.02})})
    (row,) = rows(sections, "Training, images/s, batch 128, 2 threads")
    assert row["of the limit"].value == pytest.approx(100 * work * 0.02 / 2048**3 / 0.1)
    assert [error for section in sections for error in section.errors()] == []


@pytest.mark.parametrize("ours", [0.1, 0.001])
def test_a_share_above_the_limit_is_an_error_and_nothing_is_written(
    ours: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench, training = import_module("bench"), import_module("training")
    sections = training.sections({training.COMPARISONS[0]: result(training, ours=ours)})
    monkeypatch.setattr(training, "measure", lambda *_, **__: sections)
    monkeypatch.setattr(sys, "argv", ["bench.py", "--only", "train", "--json", str(tmp_path / "bench.json")])
    status = bench.main()
    error = capsys.readouterr().err
    assert (tmp_path / "bench.json").exists() == (ours == 0.1)
    assert status == (ours == 0.001)
    assert error.count("\n") == (2 if ours == 0.001 else 0)
    if error:
        assert error.startswith("error: Training, images/s, batch 128, 1 thread: of the limit of MobileNet d1 a1 is ")
        assert ", but cannot exceed 100%: measure again" in error


@pytest.mark.usefixtures("stub")
def test_the_report_on_speed_names_the_sides_that_were_measured() -> None:
    report = import_module("report")
    record = json.loads(report.RESULTS.read_text())
    pooling = [section for section in record["sections"] if section["title"].startswith("Fractional")]
    text = report.speed(record | {"sections": pooling + [section.record() for section in measure()]})
    assert "| Network | Threads | images/s | over plain PyTorch | over good PyTorch |\n" in text
    assert "| FMP d2 a0.25 | 2 | 1280 | 4.0x | 2.0x |\n" in text
    words = " ".join(text.split())
    assert "torch.compile is the faster one in 6 of these 6 cases. Its first step takes 8 s." in words
    assert "Keras" not in words
