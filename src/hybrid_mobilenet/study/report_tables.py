"""The report's tables: our rows beside the paper's, the code that made them, and the recipes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from string import ascii_lowercase, ascii_uppercase

from ..network.architecture import resolve
from ..network.cost import network_mult_adds, network_parameters
from ..training.recipe import Recipe
from .grid import DATA_SETS, PAPER_DATA_SETS
from .judge import Judge
from .paper import RESULTS, Result
from .records import Record
from .rows import DATA_NAMES, Configuration, Row, network_name

#: What the paper says about a setting of the recipe. It says nothing about the others.
PAPER_SAYS = {"dropout": "10 %", "beta1": "Adam", "beta2": "Adam", "epsilon": "Adam"}

#: The revisions of the training code: see `records.Record.training`.
REVISIONS = {
    1: "A resumed run could end with other weights than an uninterrupted one, because Adam's moments of the first "
    "convolution were restored in the wrong order. It is not known which runs were resumed. Batch-norm statistics were "
    "running averages.",
    2: "A resumed run ends with the same weights as an uninterrupted one. Batch-norm statistics are recomputed for the "
    "final weights.",
}

#: Revision of the training code, version of the package, commit.
Code = tuple[int, str, str]

#: Columns of our rows.
OURS = "Ours, % | sd | n | Difference | Mean of passes, % | Recipe | Code |"


def table(header: str, alignment: str, lines: Sequence[str]) -> str:
    """A Markdown table."""
    return "\n".join([header, alignment, *lines])


class Tables:
    """The tables of rows. Recipes and versions of the code are named by letters.

    Args:
        found: all rows.
        judge: knows which of them count.
    """

    def __init__(self, found: Sequence[Row], judge: Judge) -> None:
        self._found, self._judge = found, judge
        self._recipes = dict(zip(dict.fromkeys(row.recipe for row in found), _letters(ascii_uppercase), strict=False))
        codes = dict.fromkeys(_code(record) for row in found for record in row.records)
        newest_first = sorted(codes, key=lambda code: -code[0])
        self._codes = dict(zip(newest_first, _letters(ascii_lowercase), strict=False))

    def beside_the_paper(self, results: Sequence[Result]) -> str:
        """The paper's rows with ours, one table for each data set."""
        tables = []
        for data in PAPER_DATA_SETS:
            lines = []
            for result in results:
                if result_data(result) == data:
                    ours = self._ours(self._judge.row(data, configuration(result)), result.accuracy)
                    lines.append(f"{_identity(result)} {result.accuracy or '-'} | {ours} |")
            header = f"| {DATA_NAMES[data]} | Mult-Adds, M | paper | Parameters, M | paper | Paper, % | {OURS}"
            tables.append(table(header, "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|---|", lines))
        return "\n\n".join(tables)

    def below_the_paper(self) -> str:
        """The rows that do not reach the paper's accuracy."""
        lines = []
        for result, row in legible(self._judge):
            short = float(result.accuracy or 0) - row.accuracy
            if short > 0:
                margin = self._judge.deviation(row.data).margin([(1, row.n)])
                training = sum(record.epochs[-1]["accuracy"] for record in row.records) / row.n
                lines.append(
                    f"| {DATA_NAMES[row.data]} | {network_name(row.configuration)} | {short:.1f} | {margin:.1f} | "
                    f"{'within' if short <= margin else 'beyond'} | {training:.1%} |"
                )
        if not lines:
            return "Every row that was run, and whose accuracy is legible in the paper, reaches it."
        header = "| Data | Network | Points below | Margin of our mean | | Training accuracy, last epoch |"
        return "Rows below the paper's accuracy:\n\n" + table(header, "|---|---|---:|---:|---|---:|", lines)

    def others(self) -> str:
        """The rows that do not count; empty if all count."""
        lines = [
            f"| {DATA_NAMES[row.data]} | {network_name(row.configuration)} | {self._ours(row, None)} |"
            for row in self._found
            if self._judge.row(row.data, row.configuration) is not row
        ]
        if not lines:
            return ""
        heading = "## Runs with another recipe or older code, which do not count above"
        header = f"| Data | Network | {OURS}"
        return f"{heading}\n\n" + table(header, "|---|---|---:|---:|---:|---:|---:|---|---|", lines)

    def code(self) -> str:
        """The revisions of the training code, and the letters of the column "Code"."""
        made = [_code(record) for row in self._found for record in row.records]
        revisions = [f"| {number} | {what} |" for number, what in REVISIONS.items()]
        letters = [
            f"| {letter} | {code[0]} | {code[1]} | {code[2]} | {made.count(code)} |"
            for code, letter in self._codes.items()
        ]
        return "\n\n".join(
            [
                "The column *Code* gives the revision of the training code, and a letter for each run in the order of "
                "the seeds. A row never mixes revisions, and the row of the newest revision counts.",
                table("| Revision | Training code |", "|---:|---|", revisions),
                table("| Letter | Revision | Version | Commit | Runs |", "|---|---:|---|---|---:|", letters),
            ]
        )

    def recipes(self) -> str:
        """Every setting of every recipe, beside what the paper says."""
        header = "| Setting | The paper | " + " | ".join(f"Recipe {each}" for each in self._recipes.values()) + " |"
        lines = []
        for field in fields(Recipe):
            values = " | ".join(f"{getattr(recipe, field.name)}" for recipe in self._recipes)
            lines.append(f"| {field.name.replace('_', ' ')} | {PAPER_SAYS.get(field.name, '-')} | {values} |")
        return table(header, "|---|---|" + "---|" * len(self._recipes), lines)

    def _ours(self, row: Row | None, reported: str | None) -> str:
        """The cells of the columns `OURS`."""
        if row is None:
            return "not run | | | | | |"
        deviation = "-" if row.deviation is None else f"{row.deviation:.2f}"
        difference = "-" if reported is None else f"{row.accuracy - float(reported):+.1f}"
        averaged = f"{sum(row.averaged) / len(row.averaged):.1f}" if row.averaged else "-"
        code = f"{row.training}: {' '.join(self._codes[_code(record)] for record in row.records)}"
        recipe = self._recipes[row.recipe]
        return f"{row.accuracy:.1f} | {deviation} | {row.n} | {difference} | {averaged} | {recipe} | {code}"


def legible(judge: Judge) -> Iterator[tuple[Result, Row]]:
    """The rows of Tables 4 to 6 that were run and whose accuracy is legible in the paper, with ours."""
    for result in RESULTS:
        row = judge.row(result_data(result), configuration(result))
        if result.accuracy is not None and row is not None:
            yield result, row


def configuration(result: Result) -> Configuration:
    """The configuration of a row of the paper."""
    return result.family, result.delta, result.alpha


def result_data(result: Result) -> str:
    """The data set of a row of the paper."""
    (data,) = (name for name in PAPER_DATA_SETS if DATA_SETS[name].classes == result.classes)
    return data


def _identity(result: Result) -> str:
    """The cells of a network: its name, and its Mult-Adds and parameters, ours and the paper's."""
    network = resolve(result.family, result.alpha, result.delta, result.classes)
    return (
        f"| {network_name(configuration(result))} | {network_mult_adds(network) / 1e6:.3f} | "
        f"{result.mult_adds or '-'} | {network_parameters(network) / 1e6:.3f} | {result.parameters or '-'} |"
    )


def _code(record: Record) -> Code:
    return record.training, record.code["version"] or "unknown", record.code["commit"] or "unknown"


def _letters(alphabet: str) -> Iterator[str]:
    """A, B, ..., Z, AA, BB, ..."""
    for count in range(1, 99):
        for letter in alphabet:
            yield letter * count
