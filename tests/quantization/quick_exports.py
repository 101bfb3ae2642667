"""What the tests of low-precision exports share: names of graphs, a quick export, and folders of copied photographs."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from conftest import known

import segdeploy
from segdeploy import artifact
from segdeploy.artifact import Artifact
from segdeploy.certificate import Stage
from segdeploy.low_precision import LowPrecision
from segdeploy.making import ExportOptions
from segdeploy.spec import Precision

SIGNED, UNSIGNED, HALF = (Path("export", f"unet.{tag}.onnx") for tag in ("int8-signed", "int8-unsigned", "fp16"))
LOOSE = 0.9  # of the pixels: the small network in int8 draws 97 % of its own


def quickly(**options: Any) -> Artifact:  # noqa: ANN401 - the fields of ExportOptions
    """The small network in one form of int8, inside a budget that it keeps at once."""
    fields = {"forms": ["unsigned"], "min_agreement": LOOSE, "max_drop": 100.0, **options}
    (graph,) = segdeploy.export("unet", precision=Precision.INT8, options=ExportOptions(**fields))
    return graph


def low_precision_of(graph: Artifact) -> LowPrecision:
    return known(graph.low_precision)


def stages_of(graph: Artifact) -> dict[str, Stage]:
    return {stage.name: stage for stage in known(graph.certificate).stages}


def hashes(files: Sequence[Path]) -> list[str]:
    return [artifact.sha256(file) for file in files]


def copied(source: Path, to: Path, name: Callable[[str], str]) -> Path:
    """The files of a folder in another one, under other names."""
    to.mkdir(parents=True)
    for file in source.iterdir():
        shutil.copy(file, to / name(file.name))
    return to
