"""Commands in README, docs, CONTRIBUTING and the Makefile work, and the tables hold the figures of the records."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import shlex
import shutil
import subprocess
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from statistics import mean, stdev

import pytest
import torch
import typer
from PIL import Image
from typer.core import TyperGroup

from hybrid_mobilenet.cli import app as cli
from hybrid_mobilenet.data.images import image_files, read_image
from hybrid_mobilenet.data.splits import load_data
from hybrid_mobilenet.study.paper import RESULTS
from processes import run_command
from scripts import script

ROOT = Path(__file__).parents[1]
README, CONTRIBUTING, CHANGELOG, NETWORKS, DEPLOYMENT, COMMANDS_GUIDE, ARCHITECTURE, SPEED_REPORT, DECISIONS = (
    (ROOT / name).read_text(encoding="utf-8")
    for name in (
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "docs/NETWORKS.md",
        "docs/DEPLOYMENT.md",
        "docs/COMMANDS.md",
        "docs/ARCHITECTURE.md",
        "docs/SPEED.md",
        "docs/DECISIONS.md",
    )
)
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")

#: Everything that tells people what to type. docs/LOG.md is a record of what was typed when.
GUIDES = (README, CONTRIBUTING, NETWORKS, DEPLOYMENT, COMMANDS_GUIDE, ARCHITECTURE)


def fenced(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """The arguments of every `hybrid-mobilenet` command in shell blocks, inline code, and Makefile recipes."""
    code = [
        *fenced(text, "sh"),
        *re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text),
        *re.findall(r"^\t(.*)$", text, re.MULTILINE),
    ]
    found = re.findall(
        r"(?:(?:^|/)hybrid-mobilenet|-m hybrid_mobilenet) (.+)$", "\n".join(code).replace("\\\n", " "), re.MULTILINE
    )
    return [shlex.split(line, comments=True) for line in found]


COMMANDS = [arguments for text in (*GUIDES, MAKEFILE) for arguments in commands(text)]
COMMAND_NAMES = [command.name for command in typer.main.get_command(cli.app).commands.values()]  # type: ignore[attr-defined]
PARSED = [arguments for arguments in COMMANDS if "--help" not in arguments]
QUICK = [arguments for arguments in COMMANDS if {"--help", "tables", "cost"} & set(arguments)]


TARGETS = sorted(
    {
        target
        for text in (*GUIDES, CI)
        for target in re.findall(r"(?:^|`)make (?:--no-print-directory )?([a-z]+)", text, re.MULTILINE)
    }
)


def parse(arguments: list[str]) -> None:
    """Parse a command line as the program would, without running it; raises typer's usage errors."""
    group = typer.main.get_command(cli.app)
    assert isinstance(group, TyperGroup)
    name, *rest = arguments
    group.commands[name].make_context(name, rest)


def test_commands_are_found() -> None:
    assert {"train", "predict"} <= {arguments[0] for arguments in commands(README)}
    assert {"train", "evaluate", "predict"} <= {arguments[0] for arguments in commands(MAKEFILE)}
    assert set(COMMAND_NAMES) <= {arguments[0] for arguments in COMMANDS}
    assert {"demo", "test", "quick", "check", "bench", "docs"} <= set(TARGETS)


@pytest.mark.parametrize("arguments", PARSED, ids=" ".join)
def test_commands_are_ones_the_program_takes(arguments: list[str]) -> None:
    parse(arguments)


@pytest.mark.parametrize(
    "arguments", [["train", "digits", "--epoch", "3"], ["predict", "runs/demo"], ["cost", "--json", "x"]]
)
def test_others_are_refused(arguments: list[str]) -> None:
    with pytest.raises(Exception) as refusal:  # noqa: PT011  typer does not publish the class
        parse(arguments)
    assert type(refusal.value).__name__ in {"NoSuchOption", "MissingParameter", "UsageError"}


@pytest.mark.parametrize("arguments", QUICK, ids=" ".join)
def test_quick_commands_run(arguments: list[str]) -> None:
    result = run_command(*arguments)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout


@pytest.mark.parametrize("block", [block for text in GUIDES for block in fenced(text, "python")])
def test_python_examples_print_what_they_say(block: str) -> None:
    expected = re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)
    output = io.StringIO()
    with redirect_stdout(output):
        exec(block, {})
    assert expected
    assert output.getvalue().splitlines() == expected


def make(*arguments: str) -> list[str]:
    """Lines that make prints, whether or not these tests run under make."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", *arguments]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=60)
    return result.stdout.splitlines()


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("target", TARGETS)
def test_make_targets_exist(target: str) -> None:
    assert make("--dry-run", target)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_help_is_the_default_and_lists_every_target() -> None:
    (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert [line.split()[:2] for line in make()] == [["make", target] for target in phony.split()]
    assert set(TARGETS) <= set(phony.split())


def test_ci_runs_the_readme_s_test_command_last() -> None:
    commands_in_order = [line.partition("#")[0].strip() for line in fenced(README, "sh")[-1].splitlines()]
    assert "make test" in commands_in_order
    assert CI.splitlines()[-1] == "make --no-print-directory test"
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


SOURCES = ROOT / "src" / "hybrid_mobilenet"


def test_every_folder_says_what_it_is_for() -> None:
    """In one line, which docs/ARCHITECTURE.md repeats."""
    for path in SOURCES.rglob("__init__.py"):
        if path.parent == SOURCES:
            continue
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        assert len(docstring.splitlines()) == 1, path
        if path.parent.parent == SOURCES:
            assert f"| `{path.parent.name}/` | {docstring} |" in ARCHITECTURE.splitlines(), path


def test_where_is_what_names_files_that_exist() -> None:
    table = ARCHITECTURE.partition("\n## Where is what\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+\?) \| (.+) \|$", table, re.MULTILINE)
    assert len(rows) >= 10
    for question, answer in rows:
        files = re.findall(r"`([\w/.]+)`", answer)
        assert files, question
        assert all((SOURCES / file).is_file() for file in files), question


def test_the_table_has_the_paper_s_figures() -> None:
    on_cifar100 = {(r.family, r.delta, r.alpha): r.accuracy or "-" for r in RESULTS if r.classes == 100}
    expected = [
        f"| {r.family} | {r.delta} | {r.alpha:g} | {r.accuracy} | {on_cifar100[r.family, r.delta, r.alpha]} "
        f"| {r.mult_adds} | {r.parameters} |"
        for r in RESULTS
        if r.classes == 10
    ]
    assert [line for line in NETWORKS.splitlines() if re.match(r"\| (mobilenet|mp3|fmp) ", line)] == expected


def test_the_page_on_speed_is_the_record_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    report = import_module("report")
    expected: str = report.speed(json.loads(report.RESULTS.read_text(encoding="utf-8")))
    assert SPEED_REPORT.splitlines() == expected.splitlines(), "python benchmarks/report.py > docs/SPEED.md"


def test_latencies_are_the_record_s() -> None:
    record = json.loads((ROOT / "results" / "latency.json").read_text(encoding="utf-8"))
    found = {(row["model"], row["threads"]): row for row in record["measurements"]}
    sizes = json.loads((ROOT / "results" / "sizes.json").read_text(encoding="utf-8"))["bytes"]
    rows = re.findall(r"^\|([^|]*)\| (.*), (float32|int8) \| (.*) \|$", DEPLOYMENT, re.MULTILINE)
    assert len(rows) == sum(threads == 1 and model.count("/") > 1 for model, threads in found)
    network = ""
    for name, runtime, number, figures in rows:
        network = name.strip() or network
        stem = network.lower().replace(" ", "-")
        suffix = {"ONNX Runtime": "onnx", "ExecuTorch": "pte", "LiteRT": "tflite"}[runtime]
        file = f"runs/{stem}/export/model.{'int8.' * (number == 'int8')}{suffix}"
        one, two = (found.get((file, threads)) or found[f"runs/peers/{stem}.onnx", threads] for threads in (1, 2))
        times = [f"{1e6 * row['latency']['median']:.0f}" for row in (one, two)]
        size = sizes.get(file) or sizes[f"runs/peers/{stem}.onnx"]
        assert figures.split(" | ") == [*times, f"{size / 1000:,.0f}"], (network, runtime, number)
    shares = [
        f"{100 * found[f'runs/fmp-d2-a0.25/export/{file}', 1]['pooling_share']:.0f} %"
        for file in ("model.onnx", "model.int8.onnx")
    ]
    assert re.findall(rf"[\d.]+ %|{SPEED}", DEPLOYMENT) == shares


#: A speed, or a quotient of speeds.
SPEED = r"[\d.,]+x(?= )|[\d.,]+ (?:times|s|ms|us|minutes|seconds|images/s)(?=\W)|(?:twice|half) as [a-z]+"


def test_speeds_stand_where_the_records_are() -> None:
    for claim in ("was 6.8x as fast", "1.6 to 9 times as fast", "at 45,000 images/s, of", "twice as fast", "in 30 s."):
        assert re.findall(SPEED, claim)
    for text in (README, CHANGELOG, COMMANDS_GUIDE, NETWORKS, ARCHITECTURE):
        assert re.findall(SPEED, text) == []


def test_accuracies_are_the_records() -> None:
    records = [json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / "results" / "reproduce").glob("*.json")]
    checked = 0
    for title, table in re.findall(r"^\| (CIFAR-\S+), 10,000 test images .*\n((?:\|.*\n)+)", NETWORKS, re.MULTILINE):
        for line in table.splitlines()[1:]:
            name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
            suffix, delta, alpha = re.match(r"MobileNet(?:\+(\w+))? d(\d) a([\d.]+)", name).groups()  # type: ignore[union-attr]
            key = title.replace("-", "").lower(), (suffix or "MobileNet").lower(), int(delta), float(alpha)
            runs = [r for r in records if (r["data"], r["family"], r["delta"], r["alpha"]) == key]
            one, twelve = (
                [100 * r["test"][passes]["accuracy"] for r in runs if passes in r["test"]] for passes in ("1", "12")
            )
            (paper,) = [r for r in RESULTS if (f"cifar{r.classes}", r.family, r.delta, r.alpha) == key]
            (epochs,) = {r["recipe"]["epochs"] for r in runs}
            spread = f" ({stdev(one):.1f})" if len(one) > 1 else ""
            averaged = f"{mean(twelve):.1f} %" if twelve else ""
            assert cells == [
                str(epochs), str(len(runs)), f"{paper.accuracy} %", f"{mean(one):.1f} %{spread}", averaged
            ], name  # fmt: skip
            checked += 1
    assert checked == 9


def test_the_readme_s_table_is_of_the_same_figures() -> None:
    """Each row joins one of docs/NETWORKS.md's accuracies for each data set with the paper's cost."""
    ours = {
        (title, name.strip().partition(",")[0]): cells
        for title, table in re.findall(r"^\| (CIFAR-\S+), 10,000 test images .*\n((?:\|.*\n)+)", NETWORKS, re.MULTILINE)
        for name, *cells in (line.strip("|").split("|") for line in table.splitlines()[1:])
    }
    rows = re.findall(r"^\| (\S+ d\d a\S+) \| (.*) \|$", README.replace("**", ""), re.MULTILINE)
    assert len(rows) == 4
    for name, figures in rows:
        key = name if name.startswith("MobileNet") else f"MobileNet+{name}"
        cells = [ours[title, key] for title in ("CIFAR-10", "CIFAR-100")]
        accuracies = [text for row in cells for text in (row[3].partition("(")[0].strip(), row[2].strip())]
        family, delta, alpha = re.match(r"(\w+) d(\d) a([\d.]+)", name).groups()  # type: ignore[union-attr]
        (cost,) = [
            result
            for result in RESULTS
            if (result.classes, result.family, result.delta, result.alpha)
            == (10, family.lower(), int(delta), float(alpha))
        ]
        assert figures.split(" | ") == [*accuracies, f"{cost.mult_adds} M", f"{cost.parameters} M"], name


MARKDOWN = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: path.name)
def test_files_named_in_prose_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    linked = re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", text)
    assert [name for name in linked if not (path.parent / name).exists()] == []
    if path.name != "LOG.md":  # names of its day
        quoted = re.findall(r"`((?:src|tests|docs|examples|benchmarks|\.ci)/[\w./-]+)`", text)
        assert [name for name in quoted if not (ROOT / name).exists()] == []


@pytest.mark.slow
def test_the_picture_is_drawn_anew(tmp_path: Path) -> None:
    script("docs/draw_fmp.py").draw(tmp_path / "fmp.png")
    with Image.open(tmp_path / "fmp.png") as drawn, Image.open(ROOT / "docs" / "fmp.png") as committed:
        assert drawn.size == committed.size
        assert drawn.convert("RGB").getcolors(maxcolors=500) is None  # more colours than that: no blank axes


def test_the_demo_s_digits_are_test_images(tmp_path: Path) -> None:
    script("examples/write_digits.py").write_digits(tmp_path / "digits")
    test = load_data("digits").test
    files = image_files([tmp_path / "digits"])
    assert [file.name for file in files] == [f"digit-{name}.png" for name in "0123456789"]
    for label, file in enumerate(files):
        image = read_image(file, test.image_size, test.channels)
        first = (test.labels == label).nonzero()[0]
        assert torch.equal(image, test.batch(first)[0])
