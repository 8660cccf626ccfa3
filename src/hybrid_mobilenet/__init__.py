"""The Enhanced Hybrid MobileNet (Chen and Su, 2018), and fractional max pooling (Graham, 2014) usable by itself.

Names are imported when first asked for, so that the command line can print tables and help without importing torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .deploy.export import export as export
    from .layers.pooling import FractionalMaxPool2d as FractionalMaxPool2d
    from .network.architecture import resolve as resolve
    from .network.model import HybridMobileNet as HybridMobileNet

    __version__: str

_MODULE_OF = {
    "FractionalMaxPool2d": "layers.pooling",
    "HybridMobileNet": "network.model",
    "export": "deploy.export",
    "resolve": "network.architecture",
}

__all__ = ["FractionalMaxPool2d", "HybridMobileNet", "__version__", "export", "resolve"]


def __getattr__(name: str) -> object:
    value: object
    if name == "__version__":
        value = _installed_version()
    elif name in _MODULE_OF:
        value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _installed_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("hybrid-mobilenet")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0+unknown"
