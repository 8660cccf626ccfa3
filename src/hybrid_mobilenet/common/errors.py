"""How errors are shown to users. Standard library only."""

from __future__ import annotations

import dis
import os
import traceback

#: If set to 1, every error is shown with its traceback.
DEBUG_VARIABLE = "HYBRID_MOBILENET_DEBUG"


def one_line(error: Exception) -> str:
    """The message of an error in one line.

    An OSError is shown with its file. A ValueError that this package did not raise itself may be a bug, and the message
    says so.
    """
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        text = f"{error.filename}: {reason}" if error.filename else reason
    else:
        text = str(error) or type(error).__name__
    if isinstance(error, ValueError) and not _is_ours(error):
        text += f" (unexpected error, possibly a bug in hybrid-mobilenet: set {DEBUG_VARIABLE}=1 to see the traceback)"
    return " ".join(text.split())


def trace(error: Exception) -> str:
    """The traceback with a newline after every line if `DEBUG_VARIABLE` is set, else an empty string."""
    wanted = os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0")
    return "".join(traceback.format_exception(error)) if wanted else ""


def _is_ours(error: Exception) -> bool:
    """Whether a `raise` statement of this package raised the error, rather than a function that it called."""
    package = __name__.partition(".")[0]
    if type(error).__module__.partition(".")[0] == package:  # also from another process, without a traceback
        return True
    origin = error.__traceback__
    while origin and origin.tb_next:
        origin = origin.tb_next
    if origin is None or origin.tb_frame.f_globals.get("__name__", "").partition(".")[0] != package:
        return False
    return dis.opname[origin.tb_frame.f_code.co_code[origin.tb_lasti]] == "RAISE_VARARGS"
