"""What the machine is."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from hybrid_mobilenet.common import machine


@pytest.mark.parametrize(
    ("text", "name", "instructions"),
    [
        (
            "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx512f\n\nprocessor\t: 1\nflags\t\t: sve\n",
            "Some CPU",
            ["avx2", "avx512f"],
        ),
        ("processor\t: 0\nFeatures\t: fp asimd asimddp sve2\n", "", ["asimd", "asimddp"]),
        ("processor\t: 0\n", "", None),
    ],
    ids=["x86", "ARM", "nothing told"],
)
def test_the_processor_as_linux_tells(
    text: str, name: str, instructions: list[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    machine.CPUINFO.write_text(text, encoding="utf-8")
    assert machine.vector_instructions() == instructions
    assert machine.processor() == (name or platform.processor() or platform.machine())
    machine.CPUINFO.unlink()
    assert machine.vector_instructions() is None
    assert machine.processor()
    assert {"processor", "vector_instructions"} <= set(machine.environment())
