"""Values of options: sizes, and comma-separated lists."""

from __future__ import annotations

import pytest

from command_line import fails, invoke
from hybrid_mobilenet.cli.options import join_lists, parse_amount, parse_choices, parse_counts, parse_image_size

FAMILIES = ("mobilenet", "mp3", "fmp")
ALPHAS = (0.25, 0.5, 1.0)
RULE = "but must be one or more of mobilenet, mp3, fmp, separated by commas, as in --family mobilenet,mp3"


@pytest.mark.parametrize(("text", "size"), [("32", (32, 32)), ("24x32", (24, 32)), ("8X16", (8, 16))])
def test_image_sizes(text: str, size: tuple[int, int]) -> None:
    assert parse_image_size(text) == size


@pytest.mark.parametrize(
    ("text", "unit", "amount"),
    [
        ("10M", "", 10e6),
        ("9.6m", "", 9_600_000),
        ("500k", "", 500e3),
        (".5G", "", 500e6),
        (" 700 ", "", 700),
        ("1_000_000", "", 1e6),
        ("0.29M", "", 290_000),
        ("300KB", "B", 300e3),
        ("300k", "B", 300e3),
        ("250000b", "B", 250_000),
    ],
)
def test_amounts(text: str, unit: str, amount: float) -> None:
    assert parse_amount("--limit", text, unit) == amount


@pytest.mark.parametrize(
    "text", ["", "M", "ten", "10 M", "10MM", "10MB", "1,5M", "-1", "0", "0k", "1e6", "nan", "inf", "\u0661k"]
)
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"^--limit is .* but must be a number above 0, such as 500k, 9.6M or 250000: k"
    ):
        parse_amount("--limit", text)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("fmp", ("fmp",)),
        ("fmp,mobilenet", ("fmp", "mobilenet")),
        (" fmp , mobilenet,mp3 ", ("fmp", "mobilenet", "mp3")),
    ],
)
def test_choices(text: str, values: tuple[str, ...]) -> None:
    assert parse_choices("--family", [text], FAMILIES) == values


@pytest.mark.parametrize(
    ("text", "values"), [("0.25", (0.25,)), (".25,1", (0.25, 1.0)), ("1.0,0.50", (1.0, 0.5)), ("5e-1", (0.5,))]
)
def test_numbers_may_be_written_differently(text: str, values: tuple[float, ...]) -> None:
    assert parse_choices("--alpha", [text], ALPHAS) == values


def test_counts() -> None:
    assert parse_counts("--threads", ["1, 2,16"], 16) == (1, 2, 16)


def test_what_is_not_given_is_empty() -> None:
    assert parse_choices("--family", None, FAMILIES) == parse_choices("--family", [], FAMILIES) == ()
    assert parse_counts("--threads", None, 16) == ()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["vgg"], f"--family is 'vgg', {RULE}"),
        (["fmp,vgg"], f"--family is 'fmp,vgg' (unknown: 'vgg'), {RULE}"),
        (["FMP"], f"--family is 'FMP', {RULE}"),
        ([""], f"--family is '' (an empty value), {RULE}"),
        (["fmp,,mp3"], f"--family is 'fmp,,mp3' (an empty value), {RULE}"),
        (["fmp, "], f"--family is 'fmp, ' (an empty value), {RULE}"),
        (["fmp,mp3, fmp"], f"--family is 'fmp,mp3, fmp' (fmp twice), {RULE}"),
        (["fmp mp3"], f"--family is 'fmp mp3', {RULE}"),
        (["fmp;mp3"], f"--family is 'fmp;mp3', {RULE}"),
        (["fmp", "mp3"], "--family is given 2 times: give it once, as --family fmp,mp3"),
    ],
    ids=str,
)
def test_choices_refuse(given: list[str], message: str) -> None:
    with pytest.raises(ValueError, match="--family") as error:
        parse_choices("--family", given, FAMILIES)
    assert str(error.value) == message


@pytest.mark.parametrize("text", ["0.75", "nan", "inf", "0.25,0.250", "x", "1,-1"])
def test_numbers_refuse(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be one or more of 0\.25, 0\.5, 1, separated by commas, as in --alpha"):
        parse_choices("--alpha", [text], ALPHAS)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "x", "1,0", "1,1", "²", "9" * 5000])
def test_counts_refuse(text: str) -> None:
    rule = "must be one or more whole numbers from 1 to 16, separated by commas, as in --threads 1,2"
    with pytest.raises(ValueError, match=rule) as error:
        parse_counts("--threads", [text], 16)
    assert str(error.value).startswith(f"--threads is {text!r}")


@pytest.mark.parametrize(
    ("typed", "joined"),
    [
        ("run --to onnx, web --json", "run --to onnx,web --json"),
        ("run --to onnx, onnx-int8, web", "run --to onnx,onnx-int8,web"),
        ("run --to onnx, --json", "run --to onnx, --json"),
        ("run --to onnx web", "run --to onnx web"),
        ("--data a, b", "--data a, b"),
        ("a, b", "a, b"),
    ],
)
def test_spaces_after_commas(typed: str, joined: str) -> None:
    assert join_lists({"--to"}, typed.split()) == joined.split()


# As a user meets them: everything here fails before torch is imported, and a run folder is not needed.


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("export run --to onnx web", "--to is 'onnx web', but its values are separated by commas: --to onnx,web"),
        ("export run --to onnx web onnx-int8 --json", "separated by commas: --to onnx,web,onnx-int8"),
        ("export run --to onnx --to web", "--to is given 2 times: give it once, as --to onnx,web"),
        (
            "export run --to onnx, wbe",
            "--to is 'onnx,wbe' (unknown: 'wbe'), but must be one or more of onnx, onnx-int8",
        ),
        ("export run --to onnx,", "--to is 'onnx,' (an empty value)"),
        ("export run", "--to is missing: give one or more of onnx, onnx-int8"),
        ("benchmark run --threads 1 --threads 2", "--threads is given 2 times: give it once, as --threads 1,2"),
        ("benchmark run --threads 0", "--threads is '0', but must be one or more whole numbers from 1 to "),
        ("reproduce --family fmp mp3", "but its values are separated by commas: --family fmp,mp3"),
        ("reproduce --data imagenet", "--data is 'imagenet', but must be one or more of cifar10, cifar100, digits"),
        ("reproduce --family vgg", "--family is 'vgg', but must be one or more of mobilenet, mp3, fmp"),
        ("reproduce --delta 2,3", "--delta is '2,3' (unknown: '3'), but must be one or more of 1, 2, 4"),
        ("reproduce --alpha 0.75", "--alpha is '0.75', but must be one or more of 0.25, 0.5, 1"),
        ("reproduce --table 3", "--table is '3', but must be one or more of 4, 5, 6, 7"),
        ("reproduce --family fmp --delta 1", "no configuration of the paper has family fmp, delta 1"),
    ],
)
def test_mistakes_show_the_right_form(line: str, part: str) -> None:
    fails(invoke(*line.split()), part)
