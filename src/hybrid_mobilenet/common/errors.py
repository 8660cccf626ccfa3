"""What a user is told of an error. Standard library only."""

from __future__ import annotations

import dis
import os
import traceback

#: Set to 1, every error is told with its traceback.
DEBUG_VARIABLE = "HYBRID_MOBILENET_DEBUG"


def one_line(error: Exception) -> str:
    """The message in one line, with the file of an OSError; a ValueError that nobody wrote a message for says so."""
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        text = f"{error.filename}: {reason}" if error.filename else reason
    else:
        text = str(error) or type(error).__name__
    if isinstance(error, ValueError) and not _is_ours(error):
        text += f" (no message of hybrid-mobilenet's own, so perhaps a bug in it: {DEBUG_VARIABLE}=1 shows where)"
    return " ".join(text.split())


def trace(error: Exception) -> str:
    """The traceback, lines that all end in a newline, where `DEBUG_VARIABLE` asks for it; else nothing."""
    wanted = os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0")
    return "".join(traceback.format_exception(error)) if wanted else ""


def _is_ours(error: Exception) -> bool:
    """Whether a `raise` statement of this package raised it, and not a function called with what it cannot take."""
    package = __name__.partition(".")[0]
    if type(error).__module__.partition(".")[0] == package:  # also from another process, which leaves no traceback
        return True
    origin = error.__traceback__
    while origin and origin.tb_next:
        origin = origin.tb_next
    if origin is None or origin.tb_frame.f_globals.get("__name__", "").partition(".")[0] != package:
        return False
    return dis.opname[origin.tb_frame.f_code.co_code[origin.tb_lasti]] == "RAISE_VARARGS"
