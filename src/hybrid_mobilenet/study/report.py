"""docs/REPRODUCTION.md: whether the paper holds up, written from the records alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from ..common.files import write_atomically
from ..network.architecture import FAMILIES, FMP_RATIO, resolve
from ..network.cost import network_mult_adds, network_parameters
from .claims import claims
from .grid import PAPER_DATA_SETS
from .judge import Claim, Judge
from .paper import RESULTS, TABLE_7, Quantity
from .plots import Mark, draw_tradeoff
from .records import Record, read_records
from .report_tables import Tables, configuration, legible, result_data, table
from .rows import DATA_NAMES, FAMILY_NAMES, Row, rows
from .statistics import LEVEL, VERDICTS

REPORT_FILE = "REPRODUCTION.md"
PICTURES: dict[Quantity, str] = {
    "mult_adds": "reproduction-mult-adds.png",
    "parameters": "reproduction-parameters.png",
}

#: What else the paper leaves unstated, and our choice.
UNSTATED = (
    ("Ratio of fractional max pooling", f'{FMP_RATIO}, which gives all map sizes of Table 3; "1.4" does not'),
    ("Pooling regions in tests", "fixed, the same for every image; also the mean of passes with random regions"),
    ("Reported epoch", "always the last; no epoch is selected by its test accuracy"),
    ("Validation split", "none: trained on all training images, tested once at the end"),
    ("Normalisation of images", "mean and standard deviation of each channel over the training images"),
    ("Initial weights", "Glorot uniform, the default of Keras"),
    ("Batch normalisation", "epsilon 0.001 as in Keras, momentum 0.1 as in PyTorch"),
    ("Padding at stride 2", "one pixel on every side, as in PyTorch"),
)

#: How verdicts are found, in the report's words.
RULES = f"""\
All accuracies are those of the last epoch on the 10,000 test images, in one pass with fixed pooling regions. With \
several seeds, the mean counts. Exact counts (Mult-Adds, parameters, feature maps) are true or false.

**Margins.** A difference of two means may be chance up to its margin, `t * s * sqrt(1/n + 1/n')`, where n and n' are \
the numbers of runs:

- `s` is the standard deviation over seeds, pooled over the rows of the data set that count and have two or more seeds.
- `t` is the {100 - 100 * LEVEL:g} % quantile of Student's t. Its degrees of freedom are the runs of these rows minus \
the number of rows. With few runs, s is uncertain and t is large.
- A mean of several differences is a sum of means with coefficients. The coefficients of a network in several pairs \
are added before they are squared. So the middle network of delta 1, 2 and 4 adds nothing to the margin, and a network \
that is compared with all others adds much."""

VERDICT_RULES = f"""\
**A comparison** holds if the difference exceeds the claimed one by more than the margin. It does not hold if the \
difference is smaller by more than the margin. Otherwise it is within the margin.

**A claim on one data set** is judged by one of two rules. The first verdict that applies counts:

| Verdict | Every comparison must hold | A kind of network is more accurate (larger delta, pooling instead of strides) |
|---|---|---|
| false | a comparison fails | a comparison fails, or the mean difference is below minus its margin |
| untested | a comparison was not run | more than half of the comparisons were not run |
| true | all comparisons hold | no comparison fails, and the mean difference is above its margin |
| inconclusive | otherwise | otherwise |

**Many comparisons.** Among many comparisons one may fail by chance. If k pairs were compared (or selected from), one \
that fails makes the claim false only if it also fails with the quantile at 100 - {100 * LEVEL:g}/k %. Otherwise the \
claim is inconclusive.

**A claim over both data sets** is false if it is false on one, and true if it is true on one and false on none. \
A data set within the margin counts neither for nor against a claim. The verdict names the data set if only one decides.

**Limits.** Each claim is judged on its own: among forty true differences of zero, about one seems to confirm a claim \
and one to refute it. Rows with different epochs or revisions are compared as they are, with a note. By these rules, \
the paper's own accuracies make none of its claims false."""


def write_report(results: Path, docs: Path) -> tuple[Path, ...]:
    """Write the report and its pictures from the records in `results`, and return the files.

    Raises:
        ValueError: if a record is damaged, or there are none of the paper's data sets.
        OSError: if a file cannot be read or written.
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
        marks = {DATA_NAMES[data]: _marks(Judge(found), data, quantity) for data in PAPER_DATA_SETS}
        draw_tradeoff(marks, axis, docs / name)
    write_atomically(docs / REPORT_FILE, render(found).encode())
    return docs / REPORT_FILE, *(docs / name for name in PICTURES.values())


def render(found: Sequence[Row]) -> str:
    """The report as Markdown. The same records give the same text."""
    judge = Judge(found)
    judged = claims(judge)
    tables = Tables(found, judge)
    parts = [
        "# Does the paper hold up?",
        "<!-- Written by `hybrid-mobilenet report` from results/reproduce/. Do not edit by hand. -->",
        _answer(found, judge, judged),
        "## What the paper claims",
        _claims_table(judged),
        "## The networks that the paper compares (Table 7)",
        tables.beside_the_paper(TABLE_7),
        tables.below_the_paper(),
        *(
            part
            for number, family in zip((4, 5, 6), FAMILIES, strict=True)
            for part in (
                f"## Table {number}: {FAMILY_NAMES[family]}",
                tables.beside_the_paper([result for result in RESULTS if result.table == number]),
            )
        ),
        tables.others(),
        "## Which code made the records",
        tables.code(),
        "## Accuracy against cost",
        "Filled marks are ours, hollow marks the paper's. Lines connect the networks of one family.",
        f"![Accuracy against Mult-Adds, ours and the paper's]({PICTURES['mult_adds']})",
        f"![Accuracy against parameters, ours and the paper's]({PICTURES['parameters']})",
        "## What the paper leaves unstated, and what we chose",
        tables.recipes(),
        "[recipe.py](../src/hybrid_mobilenet/training/recipe.py) gives the source of each value, and [LOG.md](LOG.md) "
        "the experiments. Other choices:",
        table("| Unstated in the paper | Ours |", "|---|---|", [f"| {what} | {ours} |" for what, ours in UNSTATED]),
        "## How we judge",
        RULES,
        _margins(judge),
        VERDICT_RULES,
        *(_evidence(claim) for claim in judged),
        "## How to repeat it",
        "`hybrid-mobilenet reproduce` trains every run that has no record in "
        "[results/reproduce](../results/reproduce). `hybrid-mobilenet report` writes this page. Each record has the "
        "code and the environment that made it, every epoch, and the fingerprint of its data.",
        _environment([record for row in found for record in row.records]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _answer(found: Sequence[Row], judge: Judge, judged: Sequence[Claim]) -> str:
    count = {verdict: sum(claim.verdict == verdict for claim in judged) for verdict in VERDICTS}
    single = sum(claim.decided_on() != claim.data_sets() for claim in judged if claim.verdict == "true")
    counted = [row for row in found if judge.row(row.data, row.configuration) is row]
    printed = list(legible(judge))
    reached = sum(row.accuracy >= float(result.accuracy or 0) for result, row in printed)
    differences: dict[str, list[float]] = {}
    for result, row in printed:
        name = FAMILY_NAMES[result.family]
        differences.setdefault(name, []).append(row.accuracy - float(result.accuracy or 0))
    verdicts = [
        f"| **true** | **{count['true']}** |",
        f"| true, shown on one data set only | {single} of these |",
        f"| **false** | **{count['false']}** |",
        f"| inconclusive: the differences may be chance | {count['inconclusive']} |",
        f"| untested | {count['untested']} |",
    ]
    runs = [
        f"| Rows of Tables 4 to 6 that we trained | {len(counted)} of {len(RESULTS)} |",
        f"| Training runs of these rows | {sum(row.n for row in counted)} |",
        f"| Rows whose accuracy is legible in the paper | {len(printed)} |",
        f"| Rows that reach the paper's accuracy | {reached} of {len(printed)} |",
        *(
            f"| Mean difference from the paper, {name} | {mean(values):+.1f} points |"
            for name, values in differences.items()
        ),
    ]
    return "\n\n".join(
        [
            "The paper is Chen and Su, [The Enhanced Hybrid MobileNet](https://arxiv.org/abs/1712.04698). We trained "
            f"its networks and judged the {len(judged)} claims of its sections III and IV:",
            table("| Verdict | Claims |", "|---|---:|", verdicts),
            "Accuracies are those of the last epoch, in one pass with fixed pooling regions, which is what a device "
            "runs.",
            table("| Our runs | |", "|---|---:|", runs),
        ]
    )


def _claims_table(judged: Sequence[Claim]) -> str:
    lines = [f"| {claim.section} | {claim.text} | {_verdict(claim)} | {claim.summary()} |" for claim in judged]
    return "\n\n".join(
        [
            table("| Section | The paper says | Verdict | Our figures |", "|---|---|---|---|", lines),
            "Differences are in points of accuracy, \N{PLUS-MINUS SIGN} the margin that may be chance. The rules are "
            "[below](#how-we-judge).",
        ]
    )


def _verdict(claim: Claim) -> str:
    """The verdict, and the data sets that decide it if others do not."""
    deciding = claim.decided_on()
    if claim.verdict in ("inconclusive", "untested") or deciding == claim.data_sets():
        return f"**{claim.verdict}**"
    return f"**{claim.verdict}** on {' and '.join(DATA_NAMES[data] for data in deciding)}"


def _margins(judge: Judge) -> str:
    """The standard deviation, and the margins that follow, for each data set."""
    lines = []
    note = ""
    for data in PAPER_DATA_SETS:
        deviation, source = judge.deviation(data), judge.deviation_source(data)
        freedom = "assumed" if deviation.degrees_of_freedom is None else deviation.degrees_of_freedom
        two_runs, six_runs = (deviation.margin([(1, n), (-1, n)]) for n in (1, 3))
        lines.append(
            f"| {DATA_NAMES[data]} | {deviation.points:.2f} | {freedom} | {deviation.quantile():.2f} | "
            f"{two_runs:.1f} | {six_runs:.1f} |"
        )
        if source is None:
            note = (
                "No network was trained twice, so the standard deviation is unknown. We assume about that of 10,000 "
                "test images. Every verdict on accuracies depends on this assumption."
            )
        elif source != data:
            note = (
                f"No network was trained twice on {DATA_NAMES[data]}. We assume the standard deviation of "
                f"{DATA_NAMES[source]} there. Every verdict on {DATA_NAMES[data]} depends on this assumption."
            )
    header = "| Data | s, points | Degrees of freedom | t | Margin of two single runs | Margin of two means of three |"
    margins = table(header, "|---|---:|---:|---:|---:|---:|", lines)
    return f"{margins}\n\n{note}" if note else margins


def _evidence(claim: Claim) -> str:
    lines = [f"- {each.text}: {each.outcome}" for each in claim.comparisons]
    summary = f"{claim.section}: {claim.text} <b>{_verdict(claim).replace('*', '')}</b>"
    return "\n".join(
        ["<details>", f"<summary>{summary}</summary>", "", f"Rule: {claim.rule}", "", *lines, "", "</details>"]
    )


def _environment(records: Sequence[Record]) -> str:
    def distinct(key: str) -> str:
        return ", ".join(sorted({str(record.environment[key]) for record in records}))

    hours = sum(sum(record.seconds.values()) for record in records) / 3600
    keys = {"Processor": "processor", "Device": "device", "torch": "torch", "Python": "python"}
    lines = [f"| Time | {hours:.0f} hours |", *(f"| {name} | {distinct(key)} |" for name, key in keys.items())]
    return table("| All records | |", "|---|---|", lines)


def _marks(judge: Judge, data: str, quantity: Quantity) -> list[Mark]:
    """The points of a plot, the paper's and ours."""
    marks = []
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
