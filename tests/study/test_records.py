"""Records: small files that are read as they were written, or errors that name them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hybrid_mobilenet.study.records import is_recorded, read_record, read_records, record_path, write_record
from hybrid_mobilenet.study.reproduce import Folders, RunState
from paper_records import as_the_paper
from sweeps import chosen

pytestmark = pytest.mark.usefixtures("large_batches")


def test_records_are_small_and_a_line_per_epoch(finished: tuple[Folders, list[RunState]]) -> None:
    folders, _ = finished
    text = record_path(folders.results, chosen("fmp")[0]).read_text()
    assert len(text) < 4000
    assert sum(line.startswith('  {"epoch"') for line in text.splitlines()) == 2
    assert "confusion" not in text


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"epoch": 1}', "null"])
def test_a_file_that_is_no_record(tmp_path: Path, content: str) -> None:
    run = chosen("fmp")[0]
    path = record_path(tmp_path, run)
    path.write_text(content)
    for read in (lambda: read_record(path), lambda: read_records(tmp_path), lambda: is_recorded(tmp_path, run)):
        with pytest.raises(ValueError, match=r"seed0.json is not the record of a run .*: delete it, and"):
            read()


def test_a_record_says_which_revision_trained_it(tmp_path: Path) -> None:
    each, path = as_the_paper(tables=[7], data=["cifar10"])[0], tmp_path / "record.json"
    write_record(path, replace(each, training=2))
    assert json.loads(path.read_text())["training"] == 2
    assert read_record(path).training == 2
    older = {name: value for name, value in json.loads(path.read_text()).items() if name != "training"}
    path.write_text(json.dumps(older))
    assert read_record(path).training == 1
