"""Records of runs with given accuracies, for the tests of the report."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from hybrid_mobilenet.network.architecture import Family
from hybrid_mobilenet.network.cost import network_mult_adds, network_parameters
from hybrid_mobilenet.study.claims import claims
from hybrid_mobilenet.study.grid import Run, select
from hybrid_mobilenet.study.judge import Claim, Judge
from hybrid_mobilenet.study.paper import RESULTS
from hybrid_mobilenet.study.records import Record, Score
from hybrid_mobilenet.study.rows import Configuration, Row, rows

PAPER = {(each.family, each.delta, each.alpha, each.classes): each.accuracy for each in RESULTS}


def record(run: Run, percent: float) -> Record:
    """A record as `reproduce` would write it, with a given accuracy."""
    score = Score(round(percent / 100, 4), round(100 * percent), 10_000, 1.0)
    test = (
        {1: score, 12: replace(score, accuracy=round(percent / 100 + 0.02, 4))} if run.family == "fmp" else {1: score}
    )
    return Record(
        data=run.data, family=run.family, delta=run.delta, alpha=run.alpha, seed=run.seed,
        fingerprint=run.fingerprint, recipe=run.recipe, mult_adds=network_mult_adds(run.network),
        parameters=network_parameters(run.network), images=50_000, test=test, images_per_second=600.0,
        seconds={"training": 3600.0, "evaluation": 0.0}, data_fingerprint="0" * 64,
        code={"version": "1.2.3", "commit": "abcdef"},
        environment={"torch": "2.13.0", "python": "3.11", "device": "cpu", "processor": "a processor"},
        epochs=({"epoch": 1, "accuracy": 0.9},),
    )  # fmt: skip


def as_the_paper(
    *,
    data: Collection[str] = (),
    families: Collection[Family] = (),
    tables: Collection[int] = (),
    seeds: int = 1,
    change: Callable[[Run], float] = lambda _: 0.0,
) -> list[Record]:
    """Records of all legible rows, with the paper's accuracy plus `change`."""
    runs = select(data=data, families=families, tables=tables, seeds=seeds)
    found = [(run, PAPER[run.family, run.delta, run.alpha, run.network.classes]) for run in runs]
    return [record(run, float(accuracy) + change(run)) for run, accuracy in found if accuracy is not None]


def row(configuration: Configuration, *accuracies: float) -> Row:
    """A row of CIFAR-10 with these accuracies in percent, one per seed."""
    family, delta, alpha = configuration
    (run,) = select(data=["cifar10"], families=[family], deltas=[delta], alphas=[alpha])
    (found,) = rows([record(replace(run, seed=seed), each) for seed, each in enumerate(accuracies)])
    return found


def judged(records: list[Record]) -> dict[str, Claim]:
    """The claims by their text."""
    return {claim.text: claim for claim in claims(Judge(rows(records)))}


def line(text: str, start: str, after: str) -> str:
    """The first line that starts so, after a heading."""
    return next(each for each in text.split(after, 1)[1].splitlines() if each.startswith(start))
