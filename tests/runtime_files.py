"""What tests of ExecuTorch and LiteRT share; each is skipped where its runtime is not installed."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

from hybrid_mobilenet.deploy.executorch import executorch_bytes
from hybrid_mobilenet.deploy.litert import litert_bytes
from hybrid_mobilenet.deploy.runtimes import ExecuTorchClassifier, LiteRTClassifier

CLASSIFIERS: dict[str, type[ExecuTorchClassifier] | type[LiteRTClassifier]] = {
    "executorch": ExecuTorchClassifier,
    "litert": LiteRTClassifier,
}
BYTES = {"executorch": executorch_bytes, "litert": litert_bytes}
FILES = {"executorch": "model.pte", "litert": "model.tflite"}


def needs(runtime: str) -> pytest.MarkDecorator:
    classifier = CLASSIFIERS[runtime]
    missing = not all(find_spec(module) for module in (classifier.module, classifier.exporter))
    return pytest.mark.skipif(
        missing, reason=f"{runtime} is not installed: make test-runtimes installs it and runs this"
    )


RUNTIMES = [pytest.param(runtime, marks=needs(runtime)) for runtime in CLASSIFIERS]


def executorch_plan(content: bytes) -> Any:
    from executorch.exir._serialize._program import deserialize_pte_binary

    (plan,) = (plan for plan in deserialize_pte_binary(content).program.execution_plan if plan.name == "forward")
    return plan


def is_one_subgraph(content: bytes) -> bool:
    """Whether nothing is left to ExecuTorch's portable kernels but bytes to float."""
    plan = executorch_plan(content)
    operators = [operator.name for operator in plan.operators]
    return [delegate.id for delegate in plan.delegates] == ["XnnpackBackend"] and operators == [
        "dim_order_ops::_to_dim_order_copy"
    ]
