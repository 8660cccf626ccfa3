"""The Enhanced Hybrid MobileNet (Chen and Su, 2018), and fractional max pooling (Graham, 2014) usable by itself.

Names are imported when first asked for, so that the command line can print tables and help without importing torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .data.dataset import ImageDataset as ImageDataset
    from .data.images import DataError as DataError
    from .data.splits import Splits as Splits
    from .data.splits import load_data as load_data
    from .deploy.classify import Prediction as Prediction
    from .deploy.classify import predict as predict
    from .deploy.deployed import ExportError as ExportError
    from .deploy.export import Exported as Exported
    from .deploy.export import export as export
    from .deploy.parity import Parity as Parity
    from .deploy.runtimes import RuntimeFileError as RuntimeFileError
    from .layers.keras import convert_grouped_channels as convert_grouped_channels
    from .layers.keras import convert_keras_depthwise as convert_keras_depthwise
    from .layers.keras import to_grouped_channels as to_grouped_channels
    from .layers.keras import to_keras_depthwise as to_keras_depthwise
    from .layers.pooling import FractionalMaxPool2d as FractionalMaxPool2d
    from .network.architecture import Layer as Layer
    from .network.architecture import Network as Network
    from .network.architecture import resolve as resolve
    from .network.model import HybridMobileNet as HybridMobileNet
    from .network.model import ModelError as ModelError
    from .training.augmentation import augment as augment
    from .training.checkpoint import CheckpointError as CheckpointError
    from .training.evaluate import Evaluation as Evaluation
    from .training.evaluate import evaluate as evaluate
    from .training.fit import fit as fit
    from .training.processes import OtherProcessFailed as OtherProcessFailed
    from .training.processes import ProcessLost as ProcessLost
    from .training.recipe import Augmentation as Augmentation
    from .training.recipe import Recipe as Recipe
    from .training.recipe import own_recipe as own_recipe
    from .training.recipe import paper_recipe as paper_recipe
    from .training.run import resume as resume
    from .training.run import train as train
    from .training.setup import Interrupted as Interrupted
    from .training.setup import Monitor as Monitor
    from .training.setup import Setup as Setup
    from .training.setup import TrainingDiverged as TrainingDiverged
    from .training.start import continue_from as continue_from
    from .training.step import train_step as train_step

    __version__: str

_MODULE_OF = {
    "Augmentation": "training.recipe",
    "CheckpointError": "training.checkpoint",
    "DataError": "data.images",
    "Evaluation": "training.evaluate",
    "ExportError": "deploy.deployed",
    "Exported": "deploy.export",
    "FractionalMaxPool2d": "layers.pooling",
    "HybridMobileNet": "network.model",
    "ImageDataset": "data.dataset",
    "Interrupted": "training.setup",
    "Layer": "network.architecture",
    "ModelError": "network.model",
    "Monitor": "training.setup",
    "Network": "network.architecture",
    "OtherProcessFailed": "training.processes",
    "Parity": "deploy.parity",
    "Prediction": "deploy.classify",
    "ProcessLost": "training.processes",
    "Recipe": "training.recipe",
    "RuntimeFileError": "deploy.runtimes",
    "Setup": "training.setup",
    "Splits": "data.splits",
    "TrainingDiverged": "training.setup",
    "augment": "training.augmentation",
    "continue_from": "training.start",
    "convert_grouped_channels": "layers.keras",
    "convert_keras_depthwise": "layers.keras",
    "evaluate": "training.evaluate",
    "export": "deploy.export",
    "fit": "training.fit",
    "load_data": "data.splits",
    "own_recipe": "training.recipe",
    "paper_recipe": "training.recipe",
    "predict": "deploy.classify",
    "resolve": "network.architecture",
    "resume": "training.run",
    "to_grouped_channels": "layers.keras",
    "to_keras_depthwise": "layers.keras",
    "train": "training.run",
    "train_step": "training.step",
}

__all__ = [
    "Augmentation",
    "CheckpointError",
    "DataError",
    "Evaluation",
    "ExportError",
    "Exported",
    "FractionalMaxPool2d",
    "HybridMobileNet",
    "ImageDataset",
    "Interrupted",
    "Layer",
    "ModelError",
    "Monitor",
    "Network",
    "OtherProcessFailed",
    "Parity",
    "Prediction",
    "ProcessLost",
    "Recipe",
    "RuntimeFileError",
    "Setup",
    "Splits",
    "TrainingDiverged",
    "__version__",
    "augment",
    "continue_from",
    "convert_grouped_channels",
    "convert_keras_depthwise",
    "evaluate",
    "export",
    "fit",
    "load_data",
    "own_recipe",
    "paper_recipe",
    "predict",
    "resolve",
    "resume",
    "to_grouped_channels",
    "to_keras_depthwise",
    "train",
    "train_step",
]


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
