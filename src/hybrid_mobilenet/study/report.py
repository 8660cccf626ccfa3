"""docs/REPRODUCTION.md: whether the paper holds up, written from the records and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from math import sqrt
from pathlib import Path
from statistics import mean
from string import ascii_lowercase, ascii_uppercase

from ..common.files import write_atomically
from ..common.plots import Mark, draw_tradeoff
from ..network.architecture import FAMILIES, FMP_RATIO, resolve
from ..network.cost import network_mult_adds, network_parameters
from ..training.recipe import Recipe
from .claims import (
    DATA_NAMES,
    FAMILY_NAMES,
    LEVEL,
    Claim,
    Configuration,
    Judge,
    Row,
    Verdict,
    claims,
    network_name,
    rows,
)
from .grid import DATA_SETS, PAPER_DATA_SETS
from .paper import RESULTS, TABLE_7, Quantity, Result
from .records import Record, read_records

#: What made a record: the revision of the training code, the version of the package and the commit.
Code = tuple[int, str, str]

REPORT_FILE = "REPRODUCTION.md"
VERDICTS: tuple[Verdict, ...] = ("true", "false", "inconclusive", "untested")
PICTURES: dict[Quantity, str] = {
    "mult_adds": "reproduction-mult-adds.png",
    "parameters": "reproduction-parameters.png",
}

#: What the paper says of a setting of the recipe; of the others it says nothing.
PAPER_SAYS = {"dropout": "10 %", "beta1": "Adam", "beta2": "Adam", "epsilon": "Adam"}

#: What each revision of the training code is: see `records.Record.training`.
REVISIONS = {
    1: "before a resumed run ended with the weights of one that was not interrupted (Adam's moments of the first "
    "convolution came back out of order), and before batch normalisation's statistics were computed anew at the end of "
    "training. Which of its runs were resumed is not known.",
    2: "after both changes: resumed or not, a run ends with the same weights, and batch normalisation's statistics are "
    "those of the final weights.",
}

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
    letters = dict(zip(recipes, _letters(ascii_uppercase), strict=False))
    codes = _codes(found)
    parts = [
        "# Does the paper hold up?",
        "<!-- Written by `hybrid-mobilenet report` from results/reproduce/. Not to be edited by hand. -->",
        _answer(found, judge, judged),
        "## What the paper claims",
        _claims_table(judged),
        "## The networks that the paper compares (Table 7)",
        _table(TABLE_7, judge, letters, codes),
        _below(judge),
        *(
            part
            for number, family in zip((4, 5, 6), FAMILIES, strict=True)
            for part in (
                f"## Table {number}: {FAMILY_NAMES[family]}",
                _table([result for result in RESULTS if result.table == number], judge, letters, codes),
            )
        ),
        _others(found, judge, letters, codes),
        "## Which code made the records",
        _code_table(found, codes),
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
    count = {verdict: sum(claim.verdict == verdict for claim in judged) for verdict in VERDICTS}
    alone = sum(claim.decided_on() != claim.data_sets() for claim in judged if claim.verdict == "true")
    of_one = f" Of those that are true, {alone} {'was' if alone == 1 else 'were'} shown on one data set only."
    legible = [(result, row) for result, row in _reported(judge) if row is not None]
    met = sum(row.accuracy >= float(result.accuracy or 0) for result, row in legible)
    counted = [row for row in found if judge.row(row.data, row.configuration) is row]
    runs = sum(row.n for row in counted)
    return (
        "The paper is Chen and Su, [The Enhanced Hybrid MobileNet](https://arxiv.org/abs/1712.04698). **Of the "
        f"{len(judged)} claims of its sections III and IV, in our runs {count['true']} are true, {count['false']} "
        f"false, {count['inconclusive']} inconclusive and {count['untested']} untested.**{of_one if alone else ''} "
        "Inconclusive are those whose differences may be chance.\n\n"
        f"We trained {len(counted)} of the 38 rows of its Tables 4 to 6, in {runs} run{'s' * (runs > 1)}. The paper's "
        f"accuracy of {len(legible)} of these is legible; {met} of them reach or pass it in the mean of their last "
        "epoch, in one pass over fixed pooling regions: what a device runs. Ours differ from the paper's by "
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
    lines += [f"| {claim.section} | {claim.text} | {_verdict(claim)} | {claim.summary()} |" for claim in judged]
    return "\n".join(
        [
            *lines,
            "",
            "Differences are in points of accuracy, \N{PLUS-MINUS SIGN} the margin within which they may be chance. "
            "The rule for each verdict stands [below](#how-we-judge).",
        ]
    )


def _verdict(claim: Claim) -> str:
    """The verdict, and on which data sets it was found where others decide nothing."""
    found = claim.decided_on()
    if claim.verdict in ("inconclusive", "untested") or found == claim.data_sets():
        return f"**{claim.verdict}**"
    return f"**{claim.verdict}** on {' and '.join(DATA_NAMES[data] for data in found)}"


def _table(results: Sequence[Result], judge: Judge, letters: dict[Recipe, str], codes: dict[Code, str]) -> str:
    """Rows of the paper with ours beside them: the ones of CIFAR-10, then those of CIFAR-100."""
    lines = []
    for data in PAPER_DATA_SETS:
        lines += [
            f"| {DATA_NAMES[data]} | Mult-Adds, M | paper | Parameters, M | paper | Paper, % | Ours, % | sd | n | "
            "Difference | Mean of passes, % | Recipe | Code |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|---|",
        ]
        for result in results:
            if result_data(result) == data:
                row = judge.row(data, configuration(result))
                ours = _ours(row, result.accuracy, letters, codes)
                lines.append(f"{_identity(result)} {result.accuracy or '-'} | {ours} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def _identity(result: Result) -> str:
    network = resolve(result.family, result.alpha, result.delta, result.classes)
    return (
        f"| {network_name(configuration(result))} | {network_mult_adds(network) / 1e6:.3f} | "
        f"{result.mult_adds or '-'} | {network_parameters(network) / 1e6:.3f} | {result.parameters or '-'} |"
    )


def _ours(row: Row | None, reported: str | None, letters: dict[Recipe, str], codes: dict[Code, str]) -> str:
    """The cells of a row of ours: mean, standard deviation, n, difference, mean of passes, recipe, code."""
    if row is None:
        return "not run | | | | | |"
    deviation = "-" if row.deviation is None else f"{row.deviation:.2f}"
    difference = "-" if reported is None else f"{row.accuracy - float(reported):+.1f}"
    averaged = f"{sum(row.averaged) / len(row.averaged):.1f}" if row.averaged else "-"
    code = f"{row.training}: {' '.join(codes[_code(record)] for record in row.records)}"
    return f"{row.accuracy:.1f} | {deviation} | {row.n} | {difference} | {averaged} | {letters[row.recipe]} | {code}"


def _code(record: Record) -> Code:
    return record.training, record.code["version"] or "unknown", record.code["commit"] or "unknown"


def _codes(found: Sequence[Row]) -> dict[Code, str]:
    """Letters for what made the records, the newest revision first."""
    every = dict.fromkeys(_code(record) for row in found for record in row.records)
    ordered = sorted(every, key=lambda code: -code[0])
    return dict(zip(ordered, _letters(ascii_lowercase), strict=False))


def _code_table(found: Sequence[Row], codes: dict[Code, str]) -> str:
    """Which revisions there are, and what each letter of the column "Code" stands for."""
    made = [_code(record) for row in found for record in row.records]
    return "\n".join(
        [
            "The column *Code* has the revision of the training code, and a letter of this table for each run, by "
            "seed. Runs of different revisions are never in one row; the row of the newest counts.",
            "",
            *(f"- Revision {number}: {what}" for number, what in REVISIONS.items()),
            "",
            "| Letter | Revision | Version | Commit | Runs |",
            "|---|---:|---|---|---:|",
            *(
                f"| {letter} | {code[0]} | {code[1]} | {code[2]} | {made.count(code)} |"
                for code, letter in codes.items()
            ),
        ]
    )


def _below(judge: Judge) -> str:
    """The rows that do not reach the paper's accuracy, with what speaks for and against chance."""
    lines = []
    for result, row in _reported(judge):
        if row is None or row.accuracy >= float(result.accuracy or 0):
            continue
        short = float(result.accuracy or 0) - row.accuracy
        scatter = judge.scatter(row.data)
        margin = scatter.factor() * scatter.deviation / sqrt(row.n)
        chance = "within" if short <= margin else "more than"
        training = sum(record.epochs[-1]["accuracy"] for record in row.records) / row.n
        lines.append(
            f"- {DATA_NAMES[row.data]}, {network_name(row.configuration)}: {short:.1f} points below, {chance} the "
            f"margin of our mean ({margin:.1f}); training accuracy in the last epoch {training:.1%}."
        )
    if not lines:
        return "Every row that was run, and whose accuracy is legible in the paper, reaches it."
    return "Rows that do not reach the paper's accuracy:\n\n" + "\n".join(lines)


def _others(found: Sequence[Row], judge: Judge, letters: dict[Recipe, str], codes: dict[Code, str]) -> str:
    """Rows of a configuration that was also run with another recipe or newer code, by which it is judged."""
    lines = [
        f"| {DATA_NAMES[row.data]} | {network_name(row.configuration)} | {_ours(row, None, letters, codes)} |"
        for row in found
        if judge.row(row.data, row.configuration) is not row
    ]
    if not lines:
        return ""
    header = "| Data | Network | Ours, % | sd | n | Difference | Mean of passes, % | Recipe | Code |"
    return "\n".join(
        [
            "## Runs with another recipe or older code, which do not count above",
            "",
            header,
            "|---|---|---:|---:|---:|---:|---:|---|---|",
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
    lines = [
        "| Data | s, points | Degrees of freedom | t | Margin of two single runs | Of two means of three |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    note = ""
    for data in PAPER_DATA_SETS:
        scatter = judge.scatter(data)
        unit = scatter.factor() * scatter.deviation
        freedom = "assumed" if scatter.freedom is None else scatter.freedom
        lines.append(
            f"| {DATA_NAMES[data]} | {scatter.deviation:.2f} | {freedom} | {scatter.factor():.2f} | "
            f"{unit * sqrt(2):.1f} | {unit * sqrt(2 / 3):.1f} |"
        )
        if scatter.freedom is None:
            note = (
                "No network was trained twice, so that our runs do not say how much they scatter. s is assumed, about "
                "what 10,000 test images alone would give, and every verdict on accuracies rests on that."
            )
        elif scatter.source != data:
            note = (
                f"No network was trained twice on {DATA_NAMES[data]}. That it scatters there as on "
                f"{DATA_NAMES[scatter.source]} is assumed, and every verdict on {DATA_NAMES[data]} rests on that."
            )
    percent = f"{100 * LEVEL:g}"
    parts = [
        "Accuracies are those of the last epoch on the 10,000 test images, in one pass; with several seeds, their "
        "mean. What is counted exactly (Mult-Adds, parameters, feature maps) is true or false.",
        "**Margins.** A difference of two means may be chance up to its margin, t s sqrt(1/n + 1/n'). s is the "
        "standard deviation over seeds, pooled over those rows of the data set that count and have two or more "
        f"seeds. t is Student's at {100 - 100 * LEVEL:g} %, for as many degrees of freedom as these rows have runs, "
        "less one for each row: the fewer runs, the less is known of s, and the larger is t.",
        "\n".join(lines),
        note,
        "A mean of several differences is a sum of the networks' means, each with a coefficient. Those of a network "
        "that stands in several pairs are added before they are squared: the middle one of delta 1, 2 and 4 adds "
        "nothing to the margin, one that is compared with all others adds much.",
        "**One comparison** holds where the difference is above what is claimed by more than its margin, does not hold "
        "where it is below by more than its margin, and says nothing in between.",
        "**A claim on one data set** is judged in one of two ways:",
        "- Where each comparison has to hold, it is true if all do, false if one does not, else inconclusive; and "
        "untested if one was not run.\n- Where a kind of network is said to be more accurate (growing delta, "
        "pooling for strides), it is true if the mean of the differences is above its margin and no pair does not "
        "hold, false if the mean is below minus its margin or one pair does not hold, else inconclusive; and "
        "untested if more than half was not run.",
        "Of many pairs one is far apart by chance. Where k pairs were compared (or chosen from), one that does not "
        f"hold makes the claim false only if it does not with t at 100 - {percent}/k % either; else the claim is "
        "inconclusive.",
        "**A claim** is false where it is false on one data set, and true where it is true on one and false on "
        "none. The verdict names the data set if it is not both: one on which nothing can be told apart from chance "
        "speaks neither for a claim nor against it.",
        "Each claim is judged by itself: of forty differences that are none, one will still seem to be for a claim, "
        "and one against. Rows of different epochs or revisions are compared as they are, and the comparison says "
        "so. Put through these rules, the paper's own accuracies make none of its claims false.",
    ]
    return "\n\n".join(part for part in parts if part)


def _evidence(claim: Claim) -> str:
    lines = [f"- {each.text}: {each.outcome}" for each in claim.comparisons]
    summary = f"{claim.section}: {claim.text} <b>{_verdict(claim).replace('*', '')}</b>"
    return "\n".join(
        ["<details>", f"<summary>{summary}</summary>", "", f"Rule: {claim.rule}", "", *lines, "", "</details>"]
    )


def _environment(records: Sequence[Record]) -> str:
    def distinct(values: Iterator[object]) -> str:
        return ", ".join(sorted({str(value) for value in values}))

    environment = [record.environment for record in records]
    hours = sum(sum(record.seconds.values()) for record in records) / 3600
    return (
        "`hybrid-mobilenet reproduce` trains what has no record yet in [results/reproduce](../results/reproduce), and "
        "`hybrid-mobilenet report` writes this page. The records were made in "
        f"{hours:.0f} hours of training, on {distinct(each['processor'] for each in environment)} "
        f"({distinct(each['device'] for each in environment)}), with torch "
        f"{distinct(each['torch'] for each in environment)} and Python "
        f"{distinct(each['python'] for each in environment)}; each has its own environment, "
        "the code that made it, every epoch, and the fingerprint of its data."
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


def _letters(alphabet: str) -> Iterator[str]:
    for count in range(1, 99):
        for letter in alphabet:
            yield letter * count
