"""Find the splits and the class folders of a folder of images, as people name and nest them."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..common.messages import listed
from .images import DataError, tree_below
from .labels import TABLES
from .listing import Skipped, Tree, is_leftover, natural
from .source import ImageFiles, Opened
from .split_names import Role, split_role, split_roles


@dataclass
class _Layout:
    """The folders of each split.

    Attributes:
        train: the folder whose subfolders are the classes of the training images, or of all images.
        validation: the same for the validation images.
        test: the same for the test images.
        not_classes: subfolders of `train` that are not classes.
        notes: one line each.
    """

    train: Tree
    validation: Tree | None = None
    test: Tree | None = None
    not_classes: Sequence[Tree] = ()
    notes: Sequence[str] = ()


def open_folder(path: Path, model_classes: Collection[str] | None = None) -> Opened:
    """Open a folder of images. Where it could be read in several ways, the error names them.

    A folder has one subfolder per class, or one per split with such subfolders. Names of splits may be written as
    people write them (`split_role`). A name counts as that of a split only beside other splits, or if its folder has
    class folders in it; otherwise it is a class. A folder that holds nothing but such a folder is passed through, with
    a note.

    Args:
        path: the folder.
        model_classes: the classes of the model to evaluate, or None for training. With a model, class folders may be
            empty, there may be a single class, and the training split may be missing.

    Raises:
        DataError: if the folder has no class folders, it is ambiguous which they are, or links put an image into two
            splits or classes.
        OSError: if a folder cannot be listed.
    """
    skipped = Skipped()
    tree = tree_below(path, skipped=skipped)
    is_evaluated, known = model_classes is not None, frozenset(model_classes or ())
    inner = _inner(tree, known)
    notes = [] if inner is tree else [f"read {inner.path}, the only folder of images in {path}"]
    on_the_way = {split_role(name) for name in inner.path.relative_to(path).parts}
    if on_the_way & {"validation", "test"} and not is_evaluated:
        raise _no_training_images(path, inner)
    layout = _layout(inner, known, is_evaluated)
    train, more = _read_classes(layout.train, layout.not_classes, may_be_empty=is_evaluated)
    notes += [*layout.notes, *more]
    validation, more = _read_held_out(layout.validation)
    test, others = _read_held_out(layout.test)
    _check_links({"training": train, "validation": validation, "test": test})
    return Opened(train, validation, test, (*notes, *more, *others, *skipped.notes()))


def _read_held_out(tree: Tree | None) -> tuple[ImageFiles | None, list[str]]:
    return (None, []) if tree is None else _read_classes(tree, (), may_be_empty=True)


def _inner(tree: Tree, known: frozenset[str]) -> Tree:
    """The folder below that has several subfolders with images, if the folders on the way have nothing else.

    Otherwise the folder itself. A folder named like a `known` class is a class.
    """
    inner = tree
    while not inner.images and len(inner.with_images) == 1 and inner.with_images[0].name not in known:
        (inner,) = inner.with_images
    return inner if len(inner.with_images) > 1 else tree


def _split_folder(tree: Tree, known: frozenset[str]) -> Tree:
    """The folder with the class folders of a split. Archives often nest it: seg_train/seg_train."""
    while not tree.images and len(tree.with_images) == 1:
        (only,) = tree.with_images
        role = split_role(tree.name)
        if only.name in known or (only.name != tree.name and (role is None or split_role(only.name) != role)):
            break
        tree = only
    return _inner(tree, known)


def _names(folders: Collection[Tree]) -> frozenset[str]:
    return frozenset(folder.name for folder in folders)


def _images(count: int) -> str:
    return f"{count:,} image{'s' * (count != 1)}"


def _layout(tree: Tree, known: frozenset[str], is_evaluated: bool) -> _Layout:
    """Decide which subfolders are splits and which are classes."""
    roles = split_roles([folder.name for folder in tree.with_images])
    others = [folder for folder in tree.with_images if folder.name not in roles]
    splits: dict[Role, Tree] = {}
    if not roles or (others and _names(tree.with_images) <= known):
        return _Layout(tree)
    for folder in tree.with_images:
        if (role := roles.get(folder.name)) and splits.setdefault(role, folder) is not folder:
            raise DataError(
                f"{tree.path} has several folders of {role} images ({splits[role].name}, {folder.name}): put their "
                "images together, or move one of them elsewhere"
            )
    train = _split_folder(splits["train"], known) if "train" in splits else None
    classes = _names(train.with_images if train else others)
    inner = {role: _split_folder(folder, classes) for role, folder in splits.items()}
    nested = {role: folder for role, folder in inner.items() if folder.with_images}
    flat = {role: folder for role, folder in splits.items() if role not in nested}
    left = [f"left alone: {each.path} ({_images(each.count)} without class folders)" for each in flat.values()]
    if tree.images and train:
        left.append(f"left alone: {_images(len(tree.images))} directly in {tree.path}")
    found = _Layout(inner.get("train", tree), nested.get("validation"), nested.get("test"), (), left)
    if not others:
        return _only_splits(tree, found, splits, nested, is_evaluated)
    if "train" in nested:
        if not any(classes & _names(nested[role].with_images) for role in nested if role != "train"):
            raise _ambiguous(tree, splits.values(), others)
        found.notes = [*left, f"left alone, since they are not splits: {listed([each.path for each in others])}"]
        return found
    if "train" in flat and len(splits) > 1:
        raise _ambiguous(tree, splits.values(), others)
    if not nested and "test" not in flat:
        return _Layout(tree)  # a class is called train, or valid beside invalid
    if any(_names(folder.with_images) - classes for folder in nested.values()):
        raise _ambiguous(tree, splits.values(), others)
    if len(others) < 2 and not is_evaluated:
        raise _ambiguous(tree, splits.values(), others)
    found.not_classes = list(splits.values())
    found.notes = [f"{note}: if it is a class, give it another name" for note in left]
    return found


def _only_splits(
    tree: Tree, found: _Layout, splits: dict[Role, Tree], nested: dict[Role, Tree], is_evaluated: bool
) -> _Layout:
    """The layout of a folder whose subfolders all have names of splits."""
    if "train" in nested:
        return found
    if "train" not in splits and nested:
        if not is_evaluated:
            raise _no_training_images(tree.path, next(iter(nested.values())))
        return _Layout(nested.get("test", next(iter(nested.values()))), notes=found.notes)
    raise DataError(
        f"{tree.path}: {listed(sorted(_names(splits.values())))} could be splits without class folders, or classes: "
        "for splits, put the images of each class into a folder named after the class, or give their labels with "
        "--labels; for classes, give the folders other names"
    )


def _ambiguous(tree: Tree, splits: Collection[Tree], others: Collection[Tree]) -> DataError:
    names = listed(sorted(_names(splits)))
    return DataError(
        f"{tree.path}: {names} could be splits, or classes beside {listed([each.name for each in others])}: for "
        f"splits, move the other folders elsewhere; for classes, give {names} other names"
    )


def _no_training_images(path: Path, other: Tree) -> DataError:
    return DataError(
        f"{path} has no folder of training images, only {other.path}: add a folder named train, or give {other.path} "
        "to train on it"
    )


def _read_classes(tree: Tree, not_classes: Collection[Tree], *, may_be_empty: bool) -> tuple[ImageFiles, list[str]]:
    """The images in the class folders of a folder, and notes on what could be read in another way."""
    by_name: dict[str, list[Tree]] = {}  # a name may be there in two Unicode forms
    for folder in tree.folders:
        if folder not in not_classes:
            by_name.setdefault(folder.name, []).append(folder)
    _check_class_folders(tree, by_name, may_be_empty=may_be_empty)
    names = sorted(by_name, key=natural)
    files = [[file for folder in by_name[name] for file in folder.files()] for name in names]
    labels = [label for label, of_class in enumerate(files) for _ in of_class]
    source = ImageFiles([file for of_class in files for file in of_class], labels, names)
    notes = []
    if tree.images:
        notes.append(f"left alone: {_images(len(tree.images))} directly in {tree.path}, not in a class folder")
    for name, folders in by_name.items():
        if len(folders) > 1:
            notes.append(f"read as one class: the {len(folders)} folders {name!r} in {tree.path}, in two Unicode forms")
    deep = [each for folders in by_name.values() for each in folders if not each.images and len(each.with_images) > 1]
    if deep:
        inside = listed([folder.name for folder in deep[0].with_images])
        notes.append(
            f"all images below a class folder are of its class, also those in subfolders, as in {deep[0].path} "
            f"({inside}): to tell these apart, give that folder"
        )
    return source, notes


def _check_links(parts: Mapping[str, ImageFiles | None]) -> None:
    """Refuse an image that links put into two splits or two classes."""
    folder = cache(os.path.realpath)
    seen: dict[str, tuple[Path, str]] = {}
    for what, part in parts.items():
        for file, label in zip(part.files, part.labels.tolist(), strict=True) if part else ():
            real = os.path.realpath(file) if file.is_symlink() else f"{folder(file.parent)}{os.sep}{file.name}"
            place = f"{what} image of {part.class_names[label]}" if part else what
            other, before = seen.setdefault(real, (file, place))
            if before != place:
                raise DataError(
                    f"{file} and {other} are the same file, through a link, but the first is a {place}, the second a "
                    f"{before}: remove the link"
                )


def _check_class_folders(tree: Tree, by_name: dict[str, list[Tree]], *, may_be_empty: bool) -> None:
    """Refuse a folder without class folders, with a class folder that has no images, or that is a class itself."""
    empty = [folders[0] for folders in by_name.values() if not any(folder.count for folder in folders)]
    if tree.images and len(by_name) - len(empty) < 2 and not (may_be_empty and len(by_name) > len(empty)):
        raise DataError(
            f"{tree.path} has {_images(len(tree.images))} directly in it, but must have one subfolder per class: "
            f"{_remedy(tree.path)}"
        )
    if not by_name:
        skipped = Skipped()
        tree_below(tree.path, skipped=skipped)
        raise DataError(
            f"{tree.path} has no subfolders{skipped.in_brackets()}: put the images of each class into a folder named "
            "after the class"
        )
    if empty and (len(empty) == len(by_name) or not may_be_empty):
        skipped = Skipped()
        tree_below(empty[0].path, skipped=skipped)
        raise DataError(
            f"class folder {empty[0].path} contains no images{skipped.in_brackets()}: add images such as .jpg or .png "
            "files, or remove the folder"
        )


def _remedy(path: Path) -> str:
    """What to do with a folder that has images directly in it. Often it is one class, and the folder above is meant."""
    tables = sorted(each for each in path.iterdir() if each.suffix.lower() in TABLES and not is_leftover(each.name))
    labels = f"give their labels with --labels {tables[0] if tables else 'TABLE'}"
    whole = path.resolve()
    above = whole.parent
    while split_role(above.name):
        above = above.parent
    has_siblings = any(each.is_dir() and each != whole for each in whole.parent.iterdir() if not is_leftover(each.name))
    if not tables and has_siblings and not split_role(whole.name):
        return f"if it is one class of several, give {above}; otherwise {labels}"
    return f"put the images of each class into a folder named after the class, or {labels}"
