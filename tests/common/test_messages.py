"""Suggestions, lists and causes in messages."""

from __future__ import annotations

from pathlib import Path

from hybrid_mobilenet.common.messages import listed, near, printable, reason


def test_the_most_similar_name_or_path_is_suggested(tmp_path: Path) -> None:
    assert near("cifar-10", ("cifar10", "digits")) == " (did you mean 'cifar10'?)"
    assert near("elephants", ("cifar10", "digits")) == ""
    (tmp_path / "flowers").mkdir()
    assert near(str(tmp_path / "flovers")) == f" (did you mean '{tmp_path / 'flowers'}'?)"
    assert near(str(tmp_path / "missing" / "flowers")) == ""


def test_four_things_are_listed_and_the_others_counted() -> None:
    assert listed([]) == "none"
    assert listed(["a", 2, "c", "d"]) == "a, 2, c, d"
    assert listed("abcdef") == "a, b, c, d and 2 more"


def test_the_reason_is_one_line() -> None:
    assert reason(FileNotFoundError(2, "No such file or directory", "a.png")) == "No such file or directory"
    assert reason(ValueError("first\nsecond")) == "first"
    assert reason(ValueError()) == "ValueError"


def test_what_cannot_be_printed_becomes_an_escape() -> None:
    assert printable("K\u00e4fer [1] \u732b") == "K\u00e4fer [1] \u732b"
    line = printable("two\nlines\tand \udce9")
    assert line == r"two\nlines\tand \udce9"
    line.encode()
