"""The command line from outside: its help, how it reports mistakes, and how fast it starts."""

from __future__ import annotations

import re
import resource
from pathlib import Path

import pytest
import typer

import hybrid_mobilenet
from command_line import invoke
from hybrid_mobilenet.cli import app as cli
from hybrid_mobilenet.cli.app import FILES
from processes import run_command, run_python, start_command

# Mistakes


def test_a_mistake_in_the_shell() -> None:
    result = run_command("tables", "--alpha", "0.3")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "error: alpha is 0.3, but 32 * alpha must be a whole number of channels, 1 or more: "
        "choose a multiple of 1/32, such as 0.25, 0.5 or 1\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tables", "--wdith", "1"), "No such option: --wdith"),
        (("tables", "--family", "vgg"), "--family"),
        (("nothing",), "No such command 'nothing'."),
        (("tabels",), "Did you mean 'tables'?"),
        (("cost", "more"), "Got unexpected extra argument(s) (more)"),
        (("evaluate", "run"), "DATA"),
        (("--alpha", "1"), "No such option: --alpha"),
    ],
    ids=str,
)
def test_typer_explains_what_it_does_not_know(arguments: tuple[str, ...], message: str) -> None:
    result = run_command(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr
    assert message in result.stderr
    assert "--help' for help." in result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a Linux device that is always full")
def test_a_full_disk_behind_a_redirection_is_an_error() -> None:
    with Path("/dev/full").open("w") as full:
        process = start_command("cost", "--json", stdout=full)
        _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (2, "error: No space left on device\n")


# Help


def test_every_command_is_listed_with_a_whole_sentence() -> None:
    text = invoke("--help").stdout
    listed = re.findall(r"^  (\w+) +([A-Z][^\n]*\.)$", text.partition("Commands:")[2], re.MULTILINE)
    assert [name for name, _ in listed] == list(FILES)
    assert "..." not in text.partition("Commands:")[2]
    assert invoke().stdout == ""  # a mistake: the help goes to stderr
    assert invoke().stderr.strip() == text.strip()


@pytest.mark.parametrize("name", FILES)
def test_help_teaches(name: str) -> None:
    """The docstring is printed as it is, and every command line in it is one that the program takes."""
    text = invoke(name, "--help").stdout
    examples = re.findall(r"^ +hybrid-mobilenet (\w+)(.*)$", text, re.MULTILINE)
    assert "Examples:" in text
    assert name in dict(examples)
    group = typer.main.get_command(cli.app)
    for other, arguments in examples:
        group.commands[other].make_context(other, arguments.split())  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= 80
    assert "[/]" not in text


def test_the_help_names_all_choices() -> None:
    from hybrid_mobilenet.deploy.targets import FILES as TARGETS
    from hybrid_mobilenet.network.architecture import FAMILIES
    from hybrid_mobilenet.study.grid import ALPHAS, DATA_SETS, DELTAS, TABLES

    text = " ".join(invoke("export", "--help").stdout.split())
    assert f"separated by commas: {', '.join(TARGETS)}." in text
    text = " ".join(invoke("reproduce", "--help").stdout.split())
    for choices in (DATA_SETS, FAMILIES, DELTAS, ALPHAS, TABLES):
        *first, last = (f"{choice:g}" if isinstance(choice, float) else str(choice) for choice in choices)
        assert f"{', '.join(first)} or {last}." in text


def test_the_version() -> None:
    assert run_command("--version").stdout == f"{hybrid_mobilenet.__version__}\n"


# Start


#: Packages that are slow to import, in the commands that start at once.
NEVER = {"torch", "numpy", "numba", "PIL", "datasets", "matplotlib"}
STARTING = {
    **{name: NEVER | {"rich", "pydantic"} for name in ("--help", "--version", *(f"{name} --help" for name in FILES))},
    "cost --json": NEVER | {"rich", "pydantic"},
    "tables --json": NEVER | {"rich"},
    "cost": NEVER | {"pydantic"},
    "tables": NEVER,
}


def processor_time(*arguments: str) -> float:
    """Seconds: on a quiet machine about the time that passes, and less moved by what else runs."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run_python(*arguments).check_returncode()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


@pytest.mark.parametrize("arguments", STARTING)
def test_starts_without_slow_packages(arguments: str) -> None:
    result = run_python("-X", "importtime", "-m", "hybrid_mobilenet", *arguments.split())
    assert result.returncode == 0
    imported = {name.partition(".")[0] for name in re.findall(r"\|\s*(\S+)$", result.stderr, re.MULTILINE)}
    assert "typer" in imported
    assert not imported & STARTING[arguments]


@pytest.mark.parametrize("arguments", ["--help", "train --help", "cost --json", "tables"])
def test_starts_at_once(arguments: str) -> None:
    """In little more than the time that its packages take to import: seconds would depend on the machine."""
    packages = "typer, pydantic, rich.console, rich.table" if arguments == "tables" else "typer"
    command = "-m", "hybrid_mobilenet", *arguments.split()
    ratios = []
    for _ in range(5):
        imports = min(processor_time("-c", f"import {packages}") for _ in range(2))
        ratios.append(processor_time(*command) / imports)
        if ratios[-1] < 3:
            return
    raise AssertionError(ratios)


def test_the_package_imports_nothing_heavy_until_it_is_asked() -> None:
    code = (
        "import sys, hybrid_mobilenet; from hybrid_mobilenet import resolve; "
        "assert 'torch' not in sys.modules; resolve('fmp'); "
        "assert set(hybrid_mobilenet.__all__) <= set(dir(hybrid_mobilenet)); "
        "from hybrid_mobilenet import FractionalMaxPool2d; assert 'torch' in sys.modules"
    )
    assert run_python("-c", code).stderr == ""


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'MobileNetV2'"):
        _ = hybrid_mobilenet.MobileNetV2
