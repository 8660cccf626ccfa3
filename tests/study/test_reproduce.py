"""The sweep: each run recorded once, whatever stops it."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from hybrid_mobilenet.cli import app as cli
from hybrid_mobilenet.data.dataset import load_test
from hybrid_mobilenet.network.architecture import Family
from hybrid_mobilenet.network.model import HybridMobileNet
from hybrid_mobilenet.study import reproduce
from hybrid_mobilenet.study.engines.local import run_here, run_in_processes
from hybrid_mobilenet.study.grid import Run, select
from hybrid_mobilenet.study.records import Record, is_recorded, read_record, read_records, record_path
from hybrid_mobilenet.study.reproduce import Folders, RunState
from hybrid_mobilenet.training import fit
from hybrid_mobilenet.training import recipe as recipe_module
from hybrid_mobilenet.training import run as training
from hybrid_mobilenet.training.checkpoint import CHECKPOINT_FILE, read_checkpoint
from hybrid_mobilenet.training.evaluate import evaluate
from hybrid_mobilenet.training.recipe import PAPER_RECIPES
from hybrid_mobilenet.training.setup import Interrupted, TrainingDiverged
from hybrid_mobilenet.training.step import train_step
from processes import ends, start_command, wait_for_line

#: How often `test_kills_at_random_moments` kills a sweep.
KILLS = int(os.environ.get("HYBRID_MOBILENET_KILLS", "3"))


@pytest.fixture(autouse=True)
def _large_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch of two steps, so that runs in this process take a second."""
    recipes = {family: replace(recipe, batch_size=719) for family, recipe in PAPER_RECIPES.items()}
    monkeypatch.setattr(recipe_module, "PAPER_RECIPES", recipes)


def chosen(*families: Family, epochs: int = 2) -> list[Run]:
    return select(data=["digits"], families=families, deltas=[2], alphas=[0.25], epochs=epochs)


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path / "results", tmp_path / "runs")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Folders, list[RunState]]:
    """A sweep over mobilenet and fmp that nobody disturbed, and what it told."""
    folder = tmp_path_factory.mktemp("sweep")
    folders, states = Folders(folder / "results", folder / "runs"), list[RunState]()
    with pytest.MonkeyPatch.context() as patch:
        recipes = {family: replace(each, batch_size=719) for family, each in PAPER_RECIPES.items()}
        patch.setattr(recipe_module, "PAPER_RECIPES", recipes)
        run_here(chosen("mobilenet", "fmp"), folders, states.append)
    return folders, states


def outcome(record: Record) -> dict[str, Any]:
    """What does not depend on the machine's speed."""
    times = {"images_per_second", "seconds", "step_seconds", "evaluation_seconds"}
    fields = {name: value for name, value in vars(record).items() if name not in times | {"environment", "code"}}
    epochs = [{key: value for key, value in line.items() if key not in times} for line in record.epochs]
    return fields | {"epochs": epochs}


def outcomes(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: outcome(read_record(path)) for path in folder.glob("*.json")}


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


def test_records_are_small_and_a_line_per_epoch(finished: tuple[Folders, list[RunState]]) -> None:
    folders, _ = finished
    text = record_path(folders.results, chosen("fmp")[0]).read_text()
    assert len(text) < 4000
    assert sum(line.startswith('  {"epoch"') for line in text.splitlines()) == 2
    assert "confusion" not in text


def test_only_networks_with_random_regions_are_averaged(finished: tuple[Folders, list[RunState]]) -> None:
    folders, _ = finished
    assert list(read_record(record_path(folders.results, chosen("mobilenet")[0])).test) == [1]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"epoch": 1}', "null"])
def test_a_file_that_is_no_record(tmp_path: Path, content: str) -> None:
    run = chosen("fmp")[0]
    path = record_path(tmp_path, run)
    path.write_text(content)
    for read in (lambda: read_record(path), lambda: read_records(tmp_path), lambda: is_recorded(tmp_path, run)):
        with pytest.raises(ValueError, match=r"seed0.json is not the record of a run .*: delete it, and"):
            read()


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
    assert plain.message.startswith("invalid literal for int() with base 10: 'one' (unexpected error, possibly a bug")
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


# Interruptions


def stop_at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], None]) -> None:
    """Do `act` before a step, counted over all runs from 0."""
    taken = 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal taken
        if taken == step:
            act()
        taken += 1
        return train_step(*arguments, **options)

    monkeypatch.setattr(fit, "train_step", counted)


def test_ctrl_c_saves_and_the_same_command_goes_on(
    folders: Folders, finished: tuple[Folders, list[RunState]], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = chosen("mobilenet", "fmp")
    with monkeypatch.context() as patch:
        stop_at_step(patch, 6, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(Interrupted):
            run_here(runs, folders, lambda _: None)
    assert set(outcomes(folders.results)) == {runs[0].name}
    progress = read_checkpoint(folders.run_folder(runs[1]))[1]
    assert (progress.epoch, progress.step) == (1, 1)
    run_here(runs, folders, lambda _: None)
    assert outcomes(folders.results) == outcomes(finished[0].results)


# The command


def invoke(*arguments: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "120"}).invoke(cli.app, ["reproduce", *map(str, arguments)])


def options(folders: Folders, *families: str) -> list[str]:
    selected = ["--data", "digits", "--delta", "2", "--alpha", "0.25", "--family", ",".join(families)]
    return [*selected, "--results", str(folders.results), "--runs", str(folders.runs)]


def test_the_command(finished: tuple[Folders, list[RunState]]) -> None:
    folders, _ = finished
    # The recipe's 40 epochs are not what these records were made with: --epochs must be given again.
    result = invoke(*options(folders, "mobilenet", "fmp"), "--epochs", "2")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.replace("\n", "") == f"2 of 2 runs are recorded in {folders.results}"
    result = invoke(*options(folders, "mobilenet", "fmp"), "--epochs", "2", "--json")
    assert json.loads(result.stdout) == [
        {
            "run": run.name,
            "state": "recorded",
            "record": str(record_path(folders.results, run)),
            "accuracy": {
                str(passes): score.accuracy
                for passes, score in read_record(record_path(folders.results, run)).test.items()
            },
        }
        for run in chosen("mobilenet", "fmp")
    ]


def test_the_command_tells_and_fails(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*_arguments: object) -> None:
        raise TrainingDiverged("training diverged")

    monkeypatch.setattr(reproduce, "train", diverge)
    result = invoke(*options(folders, "mobilenet"))
    assert result.exit_code == 2
    name = "digits-mobilenet-d2-a0.25-seed0"
    assert result.stderr.splitlines() == [
        f"{name}  failed  training diverged  [0 of 1 runs finished, 1 failed]",
        f"error: {name}: training diverged",
    ]
    assert result.stdout.replace("\n", "") == f"0 of 1 runs are recorded in {folders.results}"


def test_epochs_never_replace_a_record(finished: tuple[Folders, list[RunState]]) -> None:
    folders, _ = finished
    result = invoke(*options(folders, "mobilenet"), "--epochs", "1")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"error: --epochs 1 would replace 1 records of other recipes in {folders.results}, such as that of "
        "digits-mobilenet-d2-a0.25-seed0: choose another folder with --results\n"
    )


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--family", "vgg"], "--family is 'vgg', but must be one or more of mobilenet, mp3, fmp, separated by commas"),
        (["--seeds", "0"], "--seeds is 0"),
        (["--epochs", "0"], "epochs is 0"),
        (["--jobs", "0"], "--jobs is 0, but must be 1 or more"),
    ],
)
def test_the_command_refuses(arguments: list[str], part: str) -> None:
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert part in result.stderr


@pytest.mark.slow
def test_a_dry_run_measures_and_runs_nothing(folders: Folders, finished: tuple[Folders, list[RunState]]) -> None:
    folders = Folders(finished[0].results, folders.runs)
    arguments = [*options(folders, "mobilenet", "fmp"), "--epochs", "2", "--seeds", "2"]
    record = json.loads(invoke(*arguments, "--dry-run", "--json").stdout)
    assert [run["run"] for run in record["runs"]] == [
        "digits-mobilenet-d2-a0.25-seed1",
        "digits-fmp-d2-a0.25-seed1",
    ]
    for run in record["runs"]:
        assert (run["epochs"], run["is_begun"]) == (2, False)
        assert run["seconds"] > 2 * 2 * 700 / run["images_per_second"]
    assert record["seconds"] == pytest.approx(sum(run["seconds"] for run in record["runs"]))
    assert not folders.runs.exists()
    lines = invoke(*arguments, "--dry-run").stdout.splitlines()
    assert lines[0].split()[:7] == ["Data", "Family", "Delta", "Alpha", "Runs", "begun", "Epochs"]
    assert lines[0].split()[7:] == ["images/s", "a", "run", "all"]
    assert [line.split()[:5] for line in lines[2:4]] == [
        ["digits", "mobilenet", "2", "0.25", "1"],
        ["digits", "fmp", "2", "0.25", "1"],
    ]
    assert lines[4].startswith("2 of 4 runs are recorded; the others take about ")


@pytest.mark.slow
def test_an_estimate_is_near_the_truth(finished: tuple[Folders, list[RunState]]) -> None:
    from hybrid_mobilenet.study.estimate import measure

    run = chosen("fmp")[0]
    speed = measure(run)
    took = read_record(record_path(finished[0].results, run)).epochs[-1]["step_seconds"] / 2
    assert took / 5 < speed.step < took * 5  # the machine may be busy with something else at either time


# Several processes


@pytest.mark.slow
def test_processes_give_the_same_records(folders: Folders, finished: tuple[Folders, list[RunState]]) -> None:
    states: list[RunState] = []
    run_in_processes(chosen("mobilenet", "fmp"), folders, 2, states.append)
    assert outcomes(folders.results) == outcomes(finished[0].results)
    assert [state.state for state in states if state.state != "running"] == ["finished"] * 2
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_a_process_takes_one_run_after_another_and_reads_the_data_once(folders: Folders) -> None:
    states, processes, names = list[RunState](), set[int | None](), set[str]()

    def look(state: RunState) -> None:
        states.append(state)
        processes.update(each.pid for each in multiprocessing.active_children())
        names.update(each.name for each in multiprocessing.active_children())

    runs = chosen("mobilenet", "mp3")
    run_in_processes(runs, folders, 1, look)
    assert [state.name for state in states if state.state == "finished"] == [run.name for run in runs]
    assert len(processes) == 1
    assert names == {run.name for run in runs}
    assert [state.name for state in states if "reading training images" in state.what] == [runs[0].name] * 6


@pytest.mark.slow
def test_a_killed_process_costs_its_run_alone(folders: Folders) -> None:
    states: list[RunState] = []
    runs = chosen("mobilenet", "fmp", epochs=3)

    def kill_one(state: RunState) -> None:
        states.append(state)
        if state.name == runs[1].name and state.what.startswith("epoch 1/3 loss") and state.is_news:
            (worker,) = (each for each in multiprocessing.active_children() if each.name == runs[1].name)
            worker.kill()

    run_in_processes(runs, folders, 2, kill_one)
    ended = {state.name: state for state in states if state.state != "running"}
    assert ended[runs[0].name].state == "finished"
    assert ended[runs[1].name].state == "failed"
    assert "was killed by signal 9: run again" in ended[runs[1].name].message
    run_here(runs, folders, states.append)
    assert len(read_records(folders.results)) == 2
    assert states[-1].state == "finished"


def sweep(folders: Folders, *arguments: str) -> subprocess.Popen[str]:
    """A sweep over two runs, in a process group of its own."""
    command = ["reproduce", *options(folders, "mobilenet", "fmp"), *arguments]
    return start_command(*command, environment={"COLUMNS": "200"}, start_new_session=True)


def worker(folders: Folders, run: Run) -> int:
    """The process that works on a run, as its lock says."""
    return int((folders.runs / f"{folders.run_folder(run).name}.lock").read_text().split()[1])


@pytest.mark.parametrize(
    ("number", "whom"),
    [(signal.SIGINT, os.killpg), (signal.SIGTERM, os.killpg), (signal.SIGTERM, os.kill), (signal.SIGKILL, os.kill)],
    ids=["Ctrl-C", "SIGTERM to all", "SIGTERM", "SIGKILL"],
)
@pytest.mark.slow
def test_what_stops_a_sweep_saves_every_process_s_run(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, whom: Callable[[int, int], None]
) -> None:
    monkeypatch.undo()  # the sweep's own batch size, so that the run folders are these
    process = sweep(folders, "--jobs", "2", "--epochs", "40")
    for family in ("mobilenet", "fmp"):
        wait_for_line(process, family, "epoch")
    runs = chosen("mobilenet", "fmp", epochs=40)
    workers = [worker(folders, run) for run in runs]
    whom(process.pid, number)
    stdout, stderr = process.communicate(timeout=300)
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert (process.returncode, stdout) == (130, "")
        assert stderr.splitlines()[-1] == "error: stopped and saved; the same command continues"
    assert "Traceback" not in stderr
    assert all(map(ends, workers))
    # Between epochs no step is done yet: what was saved at the end of an epoch has none.
    assert all(read_checkpoint(folders.run_folder(run))[1].step > 0 for run in runs)


@pytest.mark.slow
def test_a_process_that_is_stopped_costs_its_run_alone(folders: Folders) -> None:
    runs = chosen("mobilenet", "mp3", "fmp", epochs=3)
    stopped, states = runs[0], list[RunState]()

    def stop_one(state: RunState) -> None:
        states.append(state)
        if state.name == stopped.name and state.what.startswith("epoch 1/3 loss") and state.is_news:
            os.kill(worker(folders, stopped), signal.SIGTERM)

    run_in_processes(runs, folders, 1, stop_one)  # the others in the process that takes its folders
    ended = {state.name: (state.state, state.message) for state in states if state.state != "running"}
    assert ended[stopped.name] == ("failed", "its process was stopped by SIGTERM: run again to resume it")
    assert [ended[run.name][0] for run in runs[1:]] == ["finished"] * 2
    assert read_checkpoint(folders.run_folder(stopped))[1].step > 0
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_a_process_that_is_stopped_before_it_begins(folders: Folders) -> None:
    runs, states = chosen("mobilenet", "mp3", epochs=1), list[RunState]()

    def stop_first() -> None:
        while not (started := multiprocessing.active_children()):
            time.sleep(0.01)  # if none comes, the thread ends with the tests
        time.sleep(0.3)  # it has its run by then, and is still importing torch
        started[0].terminate()

    stopping = threading.Thread(target=stop_first, daemon=True)
    stopping.start()
    run_in_processes(runs, folders, 1, states.append)
    stopping.join(60)
    assert [(state.name, state.state) for state in states if state.state != "running"] == [
        (runs[0].name, "failed"),
        (runs[1].name, "finished"),
    ]


@pytest.mark.slow
def test_a_sweep_that_fails_leaves_no_process(folders: Folders) -> None:
    def fail(state: RunState) -> None:
        if state.what.startswith("epoch"):
            raise OSError("nowhere to write to")

    with pytest.raises(OSError, match="nowhere to write to"):
        run_in_processes(chosen("mobilenet", "fmp", epochs=40), folders, 2, fail)
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_the_command_says_which_process_was_stopped(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    process = sweep(folders, "--jobs", "2", "--epochs", "3")
    runs = chosen("mobilenet", "fmp", epochs=3)
    wait_for_line(process, "fmp", "epoch")
    os.kill(worker(folders, runs[1]), signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 2
    assert stdout.replace("\n", "") == f"1 of 2 runs are recorded in {folders.results}"
    message = "its process was stopped by SIGTERM: run again to resume it"
    assert stderr.splitlines()[-1] == f"error: {runs[1].name}: {message}"


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
