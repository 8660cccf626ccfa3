"""The names of splits as people write them. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

Role = Literal["train", "validation", "test"]

_ROLES: dict[str, Role] = {
    **dict.fromkeys(("train", "training", "trainset", "traindata", "trn"), "train"),
    **dict.fromkeys(("validation", "validate", "valid", "val", "dev", "valset", "devset"), "validation"),
    **dict.fromkeys(("test", "testing", "tests", "testset", "testdata", "tst"), "test"),
}
#: Words that may stand beside the word of a split: train_set, seg_train, Test Images.
_FILLERS = frozenset(
    {
        *("set", "data", "dataset", "split", "seg", "folder"),
        *("image", "images", "img", "imgs", "picture", "pictures", "photo", "photos"),
    }
)


def split_role(name: str) -> Role | None:
    """The split that a name means by itself, such as "Training", "val2017" or "seg_test"; None for other names.

    Example:
        >>> [split_role(name) for name in ("Training", "seg_test", "val2017", "train_station", "cats")]
        ['train', 'test', 'validation', None, None]
    """
    role, rest = _role_and_rest(name)
    return None if rest else role


def split_roles(names: Sequence[str]) -> dict[str, Role]:
    """The split of each name that means one, by itself or beside the others: birds_train beside birds_test."""
    found = {name: _role_and_rest(name) for name in names}
    by_rest: dict[tuple[str, ...], set[Role]] = {}
    for role, rest in found.values():
        if role:
            by_rest.setdefault(rest, set()).add(role)
    return {name: role for name, (role, rest) in found.items() if role and (not rest or len(by_rest[rest]) > 1)}


def _role_and_rest(name: str) -> tuple[Role | None, tuple[str, ...]]:
    """The split that one word of a name means, and the name's other words, except fillers."""
    words = re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).casefold())
    roles = [word for word in words if word in _ROLES]
    if len(roles) != 1:
        return None, ()
    return _ROLES[roles[0]], tuple(word for word in words if word != roles[0] and word not in _FILLERS)
