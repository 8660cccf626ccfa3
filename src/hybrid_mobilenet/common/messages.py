"""Parts of messages to the user. Standard library only."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path


def near(name: str, known: Sequence[str] = ()) -> str:
    """Suggest the known name or existing path that is most similar."""
    folder = Path(name).parent
    siblings = sorted(str(folder / entry.name) for entry in folder.iterdir()) if folder.is_dir() else []
    matches = difflib.get_close_matches(name, [*known, *siblings], n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def listed(things: Sequence[object]) -> str:
    """The first four things, and how many more there are."""
    return ", ".join(map(str, things[:4])) + (f" and {len(things) - 4} more" if len(things) > 4 else "") or "none"


def printable(text: str) -> str:
    r"""A text in one line. Line breaks and other characters that cannot be printed become escapes.

    File names may contain them, and bytes that are not UTF-8, which Python represents as lone surrogates.

    Example:
        >>> printable("two" + chr(10) + "lines")
        'two\\nlines'
    """
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def reason(error: Exception) -> str:
    """The cause of an error in one line."""
    return getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
