"""docs/REPRODUCTION.md: whether the paper holds up, written from the records and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from math import sqrt
from pathlib import Path
from statistics import mean
from string import ascii_uppercase

from .architecture import FAMILIES, FMP_RATIO, resolve
from .claims import (
    ASSUMED_DEVIATION,
    DATA_NAMES,
    FAMILY_NAMES,
    Claim,
    Configuration,
    Judge,
    Row,
    claims,
    network_name,
    rows,
)
from .cost import network_mult_adds, network_parameters
from .files import write_atomically
from .grid import DATA_SETS, PAPER_DATA_SETS
from .paper import RESULTS, TABLE_7, Quantity, Result
from .plots import Mark, draw_tradeoff
from .recipe import Recipe
from .records import Record, read_records

REPORT_FILE = "REPRODUCTION.md"
PICTURES: dict[Quantity, str] = {
    "mult_adds": "reproduction-mult-adds.png",
    "parameters": "reproduction-parameters.png",
}

#: What the paper says of a setting of the recipe; of the others it says nothing.
PAPER_SAYS = {"dropout": "10 %", "beta1": "Adam", "beta2": "Adam", "epsilon": "Adam"}

#: What it leaves open besides, and what ours is.
UNSTATED = (
    ("Ratio of fractional max pooling", f'"1.4" gives other map sizes than Table 3; {FMP_RATIO} gives all of them'),
    ("Its regions when testing", "fixed ones, the same for every image; beside it the mean of passes over random ones"),
    ("Which epoch is reported", "the last, always: no epoch is chosen by its test accuracy"),
    ("Validation", "none here: trained on all training images, tested once at the end"),
    ("Normalisation of the images", "mean and standard deviation of each channel over the training images"),
    ("First weights", "Glorot-uniform, the default of Keras"),
    ("Batch normalisation", "epsilon 0.001 as in Keras, momentum 0.1 as in PyTorch"),
    ("Padding at stride 2", "PyTorch's, one pixel on every side"),
)


def write_report(results: Path, docs: Path) -> tuple[Path, ...]:
    """Write the report and its pictures from the records in `results`; returns the files.

    Raises:
        ValueError: where a record is damaged, or there are none of the paper's data sets.
        OSError: where a file cannot be read or written.
    """
    found = rows(record for record in read_records(results) if record.data in PAPER_DATA_SETS)
    if not found:
        raise ValueError(
            f"there is no record of CIFAR-10 or CIFAR-100 in {results}: run hybrid-mobilenet reproduce first, or name "
            "their folder with --results"
        )
    docs.mkdir(parents=True, exist_ok=True)
    for quantity, name in PICTURES.items():
        axis = {"mult_adds": "Mult-Adds (millions)", "parameters": "Parameters (millions)"}[quantity]
        marks = {DATA_NAMES[data]: _marks(found, data, quantity) for data in PAPER_DATA_SETS}
        draw_tradeoff(marks, axis, docs / name)
    write_atomically(docs / REPORT_FILE, render(found).encode())
    return docs / REPORT_FILE, *(docs / name for name in PICTURES.values())


def render(found: Sequence[Row]) -> str:
    """The report as Markdown: the same records give the same text."""
    judge = Judge(found)
    judged = claims(judge)
    recipes = list(dict.fromkeys(row.recipe for row in found))
    letters = dict(zip(recipes, _letters(), strict=False))
    parts = [
        "# Does the paper hold up?",
        "<!-- Written by `hybrid-mobilenet report` from results/reproduce/. Not to be edited by hand. -->",
        _answer(found, judge, judged),
        "## What the paper claims",
        _claims_table(judged),
        "## The networks that the paper compares (Table 7)",
        _table(TABLE_7, judge, letters),
        _below(judge),
        *(
            part
            for number, family in zip((4, 5, 6), FAMILIES, strict=True)
            for part in (
                f"## Table {number}: {FAMILY_NAMES[family]}",
                _table([result for result in RESULTS if result.table == number], judge, letters),
            )
        ),
        _others(found, judge, letters),
        "## Accuracy against cost",
        "Filled marks are ours, hollow ones the paper's; lines join the marks of one family.",
        f"![Accuracy against Mult-Adds, ours and the paper's]({PICTURES['mult_adds']})",
        f"![Accuracy against parameters, ours and the paper's]({PICTURES['parameters']})",
        "## What the paper leaves unstated, and what we chose",
        _settings(recipes, letters),
        "[recipe.py](../src/hybrid_mobilenet/recipe.py) says where each value comes from, and [LOG.md](LOG.md) has the "
        "experiments. Besides:",
        "\n".join(f"- {what}: {ours}." for what, ours in UNSTATED),
        "## How we judge",
        _rules(judge),
        *(_evidence(claim) for claim in judged),
        "## How to repeat it",
        _environment([record for row in found for record in row.records]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _answer(found: Sequence[Row], judge: Judge, judged: Sequence[Claim]) -> str:
    counts = {verdict: sum(claim.verdict == verdict for claim in judged) for verdict in ("true", "false", "untested")}
    runs = sum(row.n for row in found)
    legible = [(result, row) for result, row in _reported(judge) if row is not None]
    met = sum(row.accuracy >= float(result.accuracy or 0) for result, row in legible)
    done = sum(judge.row(result_data(result), configuration(result)) is not None for result in RESULTS)
    of_claims = f"**Of the {len(judged)} claims of its sections III and IV, {counts['true']} hold in our runs"
    if counts["untested"]:
        are = "is" if counts["untested"] == 1 else "are"
        of_claims += f", {counts['false']} do not, and {counts['untested']} {are} untested.**"
    else:
        of_claims += f" and {counts['false']} do not.**"
    return (
        f"The paper is Chen and Su, [The Enhanced Hybrid MobileNet](https://arxiv.org/abs/1712.04698). {of_claims} We "
        f"trained {done} of the 38 rows of its Tables 4 to 6, in {runs} run{'s' * (runs > 1)}. The paper's accuracy "
        f"of {len(legible)} of these is legible; {met} of them reach or pass it in the mean of their last epoch, in "
        "one pass over fixed pooling regions: what a device runs. Ours differ from the paper's by "
        f"{_by_family(legible)} points on average."
    )


def _by_family(legible: Sequence[tuple[Result, Row]]) -> str:
    """Mean difference to the paper's accuracies, per family: "+4.2 (MobileNet), +1.2 (MP3)"."""
    differences: dict[str, list[float]] = {}
    for result, row in legible:
        differences.setdefault(FAMILY_NAMES[result.family], []).append(row.accuracy - float(result.accuracy or 0))
    return ", ".join(f"{mean(values):+.1f} ({family})" for family, values in differences.items())


def _claims_table(judged: Sequence[Claim]) -> str:
    lines = ["| Section | The paper says | Verdict | Our numbers |", "|---|---|---|---|"]
    lines += [f"| {claim.section} | {claim.text} | **{claim.verdict}** | {claim.summary()} |" for claim in judged]
    return "\n".join([*lines, "", "Differences are in points of accuracy; the rule for each verdict stands below."])


def _table(results: Sequence[Result], judge: Judge, letters: dict[Recipe, str]) -> str:
    """Rows of the paper with ours beside them: the ones of CIFAR-10, then those of CIFAR-100."""
    lines = []
    for data in PAPER_DATA_SETS:
        lines += [
            f"| {DATA_NAMES[data]} | Mult-Adds, M | paper | Parameters, M | paper | Paper, % | Ours, % | sd | n | "
            "Difference | Mean of passes, % | Recipe |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|",
        ]
        for result in results:
            if result_data(result) == data:
                row = judge.row(data, configuration(result))
                lines.append(f"{_identity(result)} {result.accuracy or '-'} | {_ours(row, result.accuracy, letters)} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def _identity(result: Result) -> str:
    network = resolve(result.family, result.alpha, result.delta, result.classes)
    return (
        f"| {network_name(configuration(result))} | {network_mult_adds(network) / 1e6:.3f} | "
        f"{result.mult_adds or '-'} | {network_parameters(network) / 1e6:.3f} | {result.parameters or '-'} |"
    )


def _ours(row: Row | None, reported: str | None, letters: dict[Recipe, str]) -> str:
    """The cells of a row of ours: mean, standard deviation, n, difference, mean of passes, recipe."""
    if row is None:
        return "not run | | | | |"
    deviation = "-" if row.deviation is None else f"{row.deviation:.2f}"
    difference = "-" if reported is None else f"{row.accuracy - float(reported):+.1f}"
    averaged = f"{sum(row.averaged) / len(row.averaged):.1f}" if row.averaged else "-"
    return f"{row.accuracy:.1f} | {deviation} | {row.n} | {difference} | {averaged} | {letters[row.recipe]}"


def _below(judge: Judge) -> str:
    """The rows that do not reach the paper's accuracy, with what speaks for and against chance."""
    lines = []
    for result, row in _reported(judge):
        if row is None or row.accuracy >= float(result.accuracy or 0):
            continue
        short = float(result.accuracy or 0) - row.accuracy
        error = 2 * judge.deviation(row.data) / sqrt(row.n)
        chance = "within" if short <= error else "more than"
        training = sum(record.epochs[-1]["accuracy"] for record in row.records) / row.n
        lines.append(
            f"- {DATA_NAMES[row.data]}, {network_name(row.configuration)}: {short:.1f} points below, {chance} twice "
            f"the standard error of our mean ({error:.1f}); training accuracy in the last epoch {training:.1%}."
        )
    if not lines:
        return "Every row that was run, and whose accuracy is legible in the paper, reaches it."
    return "Rows that do not reach the paper's accuracy:\n\n" + "\n".join(lines)


def _others(found: Sequence[Row], judge: Judge, letters: dict[Recipe, str]) -> str:
    """Rows of a configuration that was also run with another recipe, by which it is judged."""
    lines = [
        f"| {DATA_NAMES[row.data]} | {network_name(row.configuration)} | {_ours(row, None, letters)} |"
        for row in found
        if judge.row(row.data, row.configuration) is not row
    ]
    if not lines:
        return ""
    header = "| Data | Network | Ours, % | sd | n | Difference | Mean of passes, % | Recipe |"
    return "\n".join(
        [
            "## Runs with another recipe, which do not count above",
            "",
            header,
            "|---|---|---:|---:|---:|---:|---:|---|",
            *lines,
        ]
    )


def _settings(recipes: Sequence[Recipe], letters: dict[Recipe, str]) -> str:
    lines = [
        "| Setting | The paper | " + " | ".join(f"Recipe {letters[recipe]}" for recipe in recipes) + " |",
        "|---|---|" + "---|" * len(recipes),
    ]
    for field in fields(Recipe):
        values = " | ".join(f"{asdict(recipe)[field.name]}" for recipe in recipes)
        lines.append(f"| {field.name.replace('_', ' ')} | {PAPER_SAYS.get(field.name, '-')} | {values} |")
    return "\n".join(lines)


def _rules(judge: Judge) -> str:
    deviations = " and ".join(f"{judge.deviation(data):.2f} on {DATA_NAMES[data]}" for data in PAPER_DATA_SETS)
    return (
        "Accuracies are those of the last epoch on the 10,000 test images, in one pass; with several seeds, their "
        "mean. A network is more accurate than another where the difference of means exceeds the margin, twice its "
        "standard error, 2 s sqrt(1/n + 1/n'). s is the standard deviation in points over seeds, pooled over all rows "
        f"with two or more: {deviations}. Where a data set has no such row it is taken from the other, and without any "
        f"it is {ASSUMED_DEVIATION}, about what 10,000 test images alone would scatter.\n\n"
        "A claim is true where it holds on each data set on which at least half of its comparisons were run, false "
        "where it does not on one, and untested where there is no such data set. It holds where each comparison holds. "
        "A claim that one kind of network is more accurate than another compares many pairs: it holds where no pair "
        "speaks against it by more than its margin, and the mean of the differences exceeds its own."
    )


def _evidence(claim: Claim) -> str:
    lines = [f"- {each.text}: {each.outcome}" for each in claim.comparisons]
    summary = f"{claim.section}: {claim.text} <b>{claim.verdict}</b>"
    return "\n".join(
        ["<details>", f"<summary>{summary}</summary>", "", f"Rule: {claim.rule}", "", *lines, "", "</details>"]
    )


def _environment(records: Sequence[Record]) -> str:
    def distinct(values: Iterator[object]) -> str:
        return ", ".join(sorted({str(value) for value in values}))

    environment = [record.environment for record in records]
    hours = sum(sum(record.seconds.values()) for record in records) / 3600
    code = distinct(" ".join(filter(None, (r.code["version"], r.code["commit"]))) for r in records)
    return (
        "`hybrid-mobilenet reproduce` trains what has no record yet in [results/reproduce](../results/reproduce), and "
        "`hybrid-mobilenet report` writes this page. The records were made in "
        f"{hours:.0f} hours of training, on {distinct(each['processor'] for each in environment)} "
        f"({distinct(each['device'] for each in environment)}), with torch "
        f"{distinct(each['torch'] for each in environment)}, Python "
        f"{distinct(each['python'] for each in environment)} and hybrid-mobilenet {code}; each has its own "
        "environment, every epoch, and the fingerprint of its data."
    )


def _marks(found: Sequence[Row], data: str, quantity: Quantity) -> list[Mark]:
    """The paper's points and ours for a picture."""
    judge, marks = Judge(found), []
    for result in RESULTS:
        if result_data(result) != data:
            continue
        network = resolve(result.family, result.alpha, result.delta, result.classes)
        exact = (network_mult_adds if quantity == "mult_adds" else network_parameters)(network) / 1e6
        printed = result.mult_adds if quantity == "mult_adds" else result.parameters
        if result.accuracy and printed:
            marks.append(Mark("the paper", FAMILY_NAMES[result.family], float(printed), float(result.accuracy)))
        if row := judge.row(data, configuration(result)):
            marks.append(Mark("ours", FAMILY_NAMES[result.family], exact, row.accuracy))
    return marks


def _reported(judge: Judge) -> Iterator[tuple[Result, Row | None]]:
    """The rows of Tables 4 to 6 whose accuracy is legible, with ours."""
    for result in RESULTS:
        if result.accuracy is not None:
            yield result, judge.row(result_data(result), configuration(result))


def configuration(result: Result) -> Configuration:
    return result.family, result.delta, result.alpha


def result_data(result: Result) -> str:
    (data,) = (name for name in PAPER_DATA_SETS if DATA_SETS[name].classes == result.classes)
    return data


def _letters() -> Iterator[str]:
    for count in range(1, 99):
        for letter in ascii_uppercase:
            yield letter * count
