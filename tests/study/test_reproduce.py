"""The sweep: each run recorded once, whatever stops it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from hybrid_mobilenet.data.splits import load_test
from hybrid_mobilenet.network.model import CHECKPOINT_FILE, HybridMobileNet
from hybrid_mobilenet.study import reproduce
from hybrid_mobilenet.study.engines.local import run_here
from hybrid_mobilenet.study.grid import Run
from hybrid_mobilenet.study.records import is_recorded, read_record, read_records, record_path
from hybrid_mobilenet.study.reproduce import Folders, RunState
from hybrid_mobilenet.training import run as training
from hybrid_mobilenet.training.checkpoint import read_checkpoint
from hybrid_mobilenet.training.evaluate import evaluate
from hybrid_mobilenet.training.setup import TrainingDiverged
from processes import wait_for_line
from sweeps import chosen, outcome, outcomes, sweep

pytestmark = pytest.mark.usefixtures("large_batches")

#: How often `test_kills_at_random_moments` kills a sweep.
KILLS = int(os.environ.get("HYBRID_MOBILENET_KILLS", "3"))


# Records


def test_a_record_holds_what_is_promised(finished: tuple[Folders, list[RunState]]) -> None:
    folders, _ = finished
    run = chosen("fmp")[0]
    record = read_record(record_path(folders.results, run))
    assert (record.data, record.family, record.delta, record.alpha, record.seed) == ("digits", "fmp", 2, 0.25, 0)
    assert (record.recipe, record.fingerprint) == (run.recipe, run.fingerprint)
    assert (record.mult_adds, record.parameters, record.images) == (602_032, 433_314, 1438)
    assert list(record.test) == [1, 12]
    for score in record.test.values():
        assert score.images == 359
        assert score.accuracy == score.correct / 359
        assert score.loss > 0
    assert [line["epoch"] for line in record.epochs] == [1, 2]
    assert record.images_per_second > 0
    assert record.seconds["training"] == sum(line["seconds"] for line in record.epochs)
    model = HybridMobileNet.from_pretrained(folders.run_folder(run))
    assert record.data_fingerprint == model.training_record["data_fingerprint"]
    evaluation = json.loads((folders.run_folder(run) / training.EVALUATION_FILE).read_text())
    assert record.test[1].correct == evaluation["correct"]
    again = evaluate(model, load_test("digits", image_size=8, channels=1), 12, run.seed)
    assert (record.test[12].correct, record.test[12].loss) == (again.correct, again.loss)
    assert record.environment["threads"] == 1
    assert record.environment["torch"]
    assert record.code["version"]


def test_only_networks_with_random_regions_are_averaged(finished: tuple[Folders, list[RunState]]) -> None:
    folders, _ = finished
    assert list(read_record(record_path(folders.results, chosen("mobilenet")[0])).test) == [1]


# What is run, and what is not


def test_a_sweep_tells_how_far_it_is(finished: tuple[Folders, list[RunState]]) -> None:
    _, states = finished
    names = [run.name for run in chosen("mobilenet", "fmp")]
    for name in names:
        told = [state for state in states if state.name == name]
        assert [state.state for state in told] == ["running"] * (len(told) - 1) + ["finished"]
        fractions = [state.done for state in told]
        assert fractions == sorted(fractions)
        assert (fractions[0], fractions[-1]) == (0, 1)
        epochs = [state.what[:9] for state in told if state.is_news and state.what.startswith("epoch")]
        assert epochs == ["epoch 1/2", "epoch 2/2"]
    assert list(dict.fromkeys(state.name for state in states)) == names  # one after another, the cheapest first


def test_what_is_recorded_is_not_run_again(
    finished: tuple[Folders, list[RunState]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders, _ = finished
    before = {path: path.read_bytes() for path in folders.results.iterdir()}
    monkeypatch.setattr(reproduce, "train", None)
    monkeypatch.setattr(reproduce, "resume", None)
    states: list[RunState] = []
    run_here(chosen("mobilenet", "fmp"), folders, states.append)
    assert [state.state for state in states] == ["finished"] * 2
    assert {path: path.read_bytes() for path in folders.results.iterdir()} == before


def test_another_recipe_is_another_experiment(finished: tuple[Folders, list[RunState]], tmp_path: Path) -> None:
    folders = Folders(Path(shutil.copytree(finished[0].results, tmp_path / "results")), tmp_path / "runs")
    (run,) = chosen("mobilenet", epochs=1)
    assert not is_recorded(folders.results, run)
    run_here([run], folders, lambda _: None)
    assert is_recorded(folders.results, run)
    assert len(read_record(record_path(folders.results, run)).epochs) == 1
    assert not is_recorded(folders.results, chosen("mobilenet", epochs=2)[0])


def test_a_run_that_was_trained_but_not_recorded_is_not_trained_again(
    finished: tuple[Folders, list[RunState]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = Folders(tmp_path / "results", Path(shutil.copytree(finished[0].runs, tmp_path / "runs")))
    monkeypatch.setattr(reproduce, "train", None)
    monkeypatch.setattr(reproduce, "resume", None)
    run_here(chosen("mobilenet", "fmp"), folders, lambda _: None)
    assert outcomes(folders.results) == outcomes(finished[0].results)


def test_a_folder_that_a_kill_left_before_the_first_save(
    folders: Folders, finished: tuple[Folders, list[RunState]]
) -> None:
    (run,) = chosen("mobilenet")
    folders.run_folder(run).mkdir(parents=True)
    (folders.run_folder(run) / ".checkpoint.safetensors.x.tmp").write_bytes(b"half")
    run_here([run], folders, lambda _: None)
    assert outcome(read_record(record_path(folders.results, run))) == outcomes(finished[0].results)[run.name]


def test_a_run_that_fails_is_told_and_the_others_go_on(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    train = training.train

    def fail(setup: Any, *arguments: Any) -> Any:
        if setup.family == "mobilenet":
            raise TrainingDiverged("training diverged\nin epoch 1")
        return train(setup, *arguments)

    monkeypatch.setattr(reproduce, "train", fail)
    states: list[RunState] = []
    run_here(chosen("mobilenet", "fmp", epochs=1), folders, states.append)
    failed, *_, last = states
    assert (failed.state, failed.message) == ("failed", "training diverged in epoch 1")
    assert last.state == "finished"
    assert len(read_records(folders.results)) == 1


def test_a_run_that_fails_for_a_bug_says_so(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "train", lambda *_: int("one"))
    states: list[RunState] = []
    for debug in ("0", "1"):
        monkeypatch.setenv("HYBRID_MOBILENET_DEBUG", debug)
        run_here(chosen("mobilenet", epochs=1), folders, states.append)
    plain, shown = states
    assert plain.message.startswith(
        "invalid literal for int() with base 10: 'one' (unexpected error, possibly a bug in hybrid-mobilenet"
    )
    assert shown.message.startswith("Traceback (most recent call last):\n")
    assert shown.message.endswith(f"\n{plain.message}")


def test_a_disk_error_names_its_file(folders: Folders) -> None:
    folders.results.parent.mkdir(exist_ok=True)
    folders.results.write_text("not a folder")
    states: list[RunState] = []
    run_here(chosen("mobilenet"), folders, states.append)
    assert [(state.state, state.message) for state in states] == [("failed", f"{folders.results}: File exists")]


def test_a_run_is_left_to_the_process_that_works_on_it(folders: Folders) -> None:
    (run,) = chosen("mobilenet")
    folders.runs.mkdir()
    lock = folders.runs / f"{folders.run_folder(run).name}.lock"
    with reproduce._locked(lock) as holder:
        assert holder is None
        states: list[RunState] = []
        run_here([run], folders, states.append)
    assert [(state.state, state.message.split()[:2]) for state in states] == [
        ("elsewhere", ["process", str(os.getpid())])
    ]
    assert not folders.results.exists() or read_records(folders.results) == []


# Kills


def saved_epochs(folders: Folders, run: Run) -> tuple[int, int]:
    """Epochs of an unfinished run that are safe, and epochs that were ended."""
    folder = folders.run_folder(run)
    metrics = folder / training.METRICS_FILE
    ended = len(metrics.read_text().splitlines()) if metrics.exists() else 0
    if (folder / CHECKPOINT_FILE).exists():
        return read_checkpoint(folder)[1].epoch, ended
    return ended, ended  # not begun, or evaluated already


@pytest.mark.slow
def test_kills_at_random_moments(folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    epochs = KILLS + KILLS // 4 + 1  # a kill comes within two and a half epochs: the sweep outlasts all kills
    monkeypatch.undo()  # the sweeps' own batch size: a kill should come within an epoch
    runs = chosen("mobilenet", "fmp", epochs=epochs)
    undisturbed = Folders(tmp_path / "undisturbed" / "results", tmp_path / "undisturbed" / "runs")
    run_here(runs, undisturbed, lambda _: None)
    (epoch,) = {read_record(record_path(undisturbed.results, run)).epochs[-1]["seconds"] for run in runs[:1]}

    moments = random.Random(int(os.environ.get("HYBRID_MOBILENET_KILL_SEED", "0")))
    records: dict[Path, bytes] = {}
    safe = {run.name: 0 for run in runs}
    lost = kills = 0
    startup = None
    while kills < KILLS:
        started = time.monotonic()
        process = sweep(folders, "--epochs", str(epochs))
        if startup is not None and moments.random() < 0.3:
            time.sleep(moments.uniform(0, startup))
        else:
            wait_for_line(process, "epoch")
            startup = time.monotonic() - started
            time.sleep(moments.uniform(0, 1.5 * epoch))
        assert process.poll() is None, "the sweep ended before the last kill"
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        kills += 1
        for run in runs:
            path = record_path(folders.results, run)
            if path.exists():
                assert records.setdefault(path, path.read_bytes()) == path.read_bytes()
                continue
            saved, ended = saved_epochs(folders, run)
            assert safe[run.name] <= saved <= ended <= saved + 1
            safe[run.name] = saved
            lost += ended - saved
    process = sweep(folders, "--epochs", str(epochs))
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stderr
    assert all(path.read_bytes() == content for path, content in records.items())
    assert outcomes(folders.results) == outcomes(undisturbed.results)
    assert sorted(path.name for path in folders.results.iterdir()) == sorted(f"{run.name}.json" for run in runs)
    for run in runs:
        finished, theirs = folders.run_folder(run), undisturbed.run_folder(run)
        assert (finished / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
    print(f"{kills} kills; {lost} epochs had ended but were not saved yet")
