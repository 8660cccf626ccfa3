"""The accuracies that come with the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hybrid_mobilenet.study import recorded as module
from hybrid_mobilenet.study.frontier import Frontier
from hybrid_mobilenet.study.recorded import RECORDED_FILE, Recorded, encoded, recorded

ROOT = Path(__file__).parents[2]


def test_they_are_those_of_the_records() -> None:
    assert RECORDED_FILE.read_bytes() == encoded(Frontier.read(ROOT / "results").recorded()), (
        "run: python benchmarks/frontier.py"
    )
    read = {(each.data, each.family, each.delta, each.alpha): each for each in recorded()}
    assert len(read) == len(recorded())
    records = [json.loads(path.read_text()) for path in (ROOT / "results" / "reproduce").glob("cifar*.json")]
    for data, family, delta, alpha in {tuple(r[key] for key in ("data", "family", "delta", "alpha")) for r in records}:
        assert read[data, family, delta, alpha].accuracies


def test_they_are_read_as_they_were_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Recorded("cifar10", "fmp", 2, 0.25, "paper", False, (0.8401, 0.8355))
    other = Recorded("cifar100", "mp3", 2, 0.5, "tuned", True, (0.6,))
    path = tmp_path / "recorded.json"
    path.write_bytes(encoded([one, other]))
    assert len(path.read_text().splitlines()) == 4
    monkeypatch.setattr(module, "RECORDED_FILE", path)
    assert recorded.__wrapped__() == (one, other)
    assert one.configuration == ("fmp", 2, 0.25)
    assert one.accuracy == pytest.approx(0.8378)
