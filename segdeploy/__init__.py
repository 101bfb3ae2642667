"""Semantic segmentation, deployed: `segdeploy.open("unet").segment("photo.jpg")`. docs/python.md shows every verb."""

import importlib
from typing import TYPE_CHECKING, Any

from segdeploy._version import __version__ as __version__

if TYPE_CHECKING:
    from segdeploy.adopting.options import Adopted as Adopted
    from segdeploy.adopting.options import AdoptOptions as AdoptOptions
    from segdeploy.api import adopt as adopt
    from segdeploy.api import bench as bench
    from segdeploy.api import build as build
    from segdeploy.api import check_data as check_data
    from segdeploy.api import convert_masks as convert_masks
    from segdeploy.api import doctor as doctor
    from segdeploy.api import evaluate as evaluate
    from segdeploy.api import export as export
    from segdeploy.api import import_checkpoint as import_checkpoint
    from segdeploy.api import infer as infer
    from segdeploy.api import inspect as inspect
    from segdeploy.api import list_models as list_models
    from segdeploy.api import network as network
    from segdeploy.api import open as open  # noqa: A004 - the verb
    from segdeploy.api import parity as parity
    from segdeploy.api import report as report
    from segdeploy.api import sensitivity as sensitivity
    from segdeploy.api import train as train
    from segdeploy.artifact import Artifact as Artifact
    from segdeploy.benchmarking import BenchOptions as BenchOptions
    from segdeploy.certificate import Certificate as Certificate
    from segdeploy.checkpoints.foreign import ImportOptions as ImportOptions
    from segdeploy.data.check import DataReport as DataReport
    from segdeploy.data.convert import ConvertOptions as ConvertOptions
    from segdeploy.data.dataset import DataFolder as DataFolder
    from segdeploy.engines import BuildOptions as BuildOptions
    from segdeploy.engines import Engine as Engine
    from segdeploy.engines import NullEngine as NullEngine
    from segdeploy.engines import RunOptions as RunOptions
    from segdeploy.errors import SegdeployError as SegdeployError
    from segdeploy.images import read as _read
    from segdeploy.importing import ImportReport as ImportReport
    from segdeploy.inference.options import FolderOptions as FolderOptions
    from segdeploy.making import ExportOptions as ExportOptions
    from segdeploy.proving import ProofOptions as ProofOptions
    from segdeploy.spec import Precision as Precision
    from segdeploy.spec import Spec as Spec
    from segdeploy.timing.latency import Effort as Effort
    from segdeploy.training.options import Augmentation as Augmentation
    from segdeploy.training.options import TrainOptions as TrainOptions

    read_image = _read

_VERBS = (
    *("adopt", "bench", "build", "check_data", "convert_masks", "doctor", "evaluate", "export", "import_checkpoint"),
    *("infer", "inspect", "list_models", "network", "open", "parity", "report", "sensitivity", "train"),
)
_OFFERED = {
    **{verb: ("segdeploy.api", verb) for verb in _VERBS},
    "AdoptOptions": ("segdeploy.adopting.options", "AdoptOptions"),
    "Adopted": ("segdeploy.adopting.options", "Adopted"),
    "Augmentation": ("segdeploy.training.options", "Augmentation"),
    "Artifact": ("segdeploy.artifact", "Artifact"),
    "BenchOptions": ("segdeploy.benchmarking", "BenchOptions"),
    "BuildOptions": ("segdeploy.engines", "BuildOptions"),
    "Certificate": ("segdeploy.certificate", "Certificate"),
    "ConvertOptions": ("segdeploy.data.convert", "ConvertOptions"),
    "DataFolder": ("segdeploy.data.dataset", "DataFolder"),
    "DataReport": ("segdeploy.data.check", "DataReport"),
    "Effort": ("segdeploy.timing.latency", "Effort"),
    "Engine": ("segdeploy.engines", "Engine"),
    "ExportOptions": ("segdeploy.making", "ExportOptions"),
    "FolderOptions": ("segdeploy.inference.options", "FolderOptions"),
    "ImportOptions": ("segdeploy.checkpoints.foreign", "ImportOptions"),
    "ImportReport": ("segdeploy.importing", "ImportReport"),
    "NullEngine": ("segdeploy.engines", "NullEngine"),
    "Precision": ("segdeploy.spec", "Precision"),
    "ProofOptions": ("segdeploy.proving", "ProofOptions"),
    "RunOptions": ("segdeploy.engines", "RunOptions"),
    "SegdeployError": ("segdeploy.errors", "SegdeployError"),
    "Spec": ("segdeploy.spec", "Spec"),
    "TrainOptions": ("segdeploy.training.options", "TrainOptions"),
    "read_image": ("segdeploy.images", "read"),
}
__all__ = sorted(_OFFERED)  # noqa: PLE0605 - the names of a table


def __getattr__(name: str) -> Any:  # noqa: ANN401 - loaded when it is asked for: `import segdeploy` stays light
    if name not in _OFFERED:
        raise AttributeError(f"module 'segdeploy' has no attribute {name!r}")
    module, attribute = _OFFERED[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
