"""How errors are shown: in one line, and with the traceback on request."""

from __future__ import annotations

import pytest

from command_line import fails, invoke
from hybrid_mobilenet.cli import network
from hybrid_mobilenet.data.images import DataError
from processes import ENVIRONMENT, run_command

NOT_OURS = "(unexpected error, possibly a bug in hybrid-mobilenet: set HYBRID_MOBILENET_DEBUG=1 to see the traceback)"


@pytest.mark.parametrize(
    ("error", "message", "status"),
    [
        (KeyboardInterrupt(), "error: interrupted\n", 130),
        (KeyboardInterrupt("stopped: go on with --resume runs/a"), "error: stopped: go on with --resume runs/a\n", 130),
        (FileNotFoundError(2, "No such file or directory", "a.png"), "error: a.png: No such file or directory\n", 2),
        (OSError(28, "No space left on device"), "error: No space left on device\n", 2),
        (OSError("the disk is gone"), "error: the disk is gone\n", 2),
        (DataError("two\n  lines"), "error: two\\n lines\n", 2),  # such as a file name
        (ValueError("two\n  lines"), f"error: two lines {NOT_OURS}\n", 2),
    ],
    ids=repr,
)
def test_what_a_command_raises_becomes_one_line(
    error: BaseException, message: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cost() -> None:
        raise error

    monkeypatch.setattr(network, "cost", cost)
    result = invoke("cost")
    assert (result.exit_code, result.stderr) == (status, message)


def test_an_error_that_nobody_wrote_a_message_for_says_so() -> None:
    """Python's own, of more digits than it takes, in a function of the package that raises mistakes of the user's."""
    for side, is_ours in (("x", True), ("9" * 5000, False)):
        result = invoke("tables", "--image-size", side)
        fails(result)
        assert result.stderr.endswith(f" {NOT_OURS}\n") is not is_ours


@pytest.mark.parametrize("arguments", [("--alpha", "0.3"), ("--image-size", "9" * 5000)], ids=["mistake", "bug"])
def test_the_traceback_is_shown_where_it_is_asked_for(
    arguments: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run_command("tables", *arguments)
    monkeypatch.setitem(ENVIRONMENT, "HYBRID_MOBILENET_DEBUG", "0")
    assert run_command("tables", *arguments).stderr == plain.stderr
    monkeypatch.setitem(ENVIRONMENT, "HYBRID_MOBILENET_DEBUG", "1")
    shown = run_command("tables", *arguments)
    assert (shown.returncode, shown.stdout) == (2, "")
    assert shown.stderr.startswith("Traceback (most recent call last):\n")
    assert shown.stderr.endswith(f"\n{plain.stderr}")
    assert 'cli/network.py", line ' in shown.stderr
