"""How a float32 graph becomes one of low precision, whichever layers stay in float32."""

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import onnx

from segdeploy import artifact, precision
from segdeploy._version import __version__
from segdeploy.artifact import Artifact
from segdeploy.errors import GateFailedError, InvalidFileError, InvalidRequestError
from segdeploy.graphs import foreign
from segdeploy.low_precision import Budget, LowPrecision
from segdeploy.origin import Calibration, GraphOrigin, Origin
from segdeploy.precision import Layers, PrecisionModule, Range, fp16
from segdeploy.progress import Progress
from segdeploy.proof import executed
from segdeploy.quantization import calibration
from segdeploy.quantization.images_in_parts import Parts, Photographs
from segdeploy.spec import Precision

EXTREMES = "extremes"  # the method of a precision that clips nothing


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A float32 graph (`fp32`, read into `model`), the precision and form it gets, and the ranges of its activations.

    `calibration` says where the ranges come from.
    """

    fp32: Artifact
    model: onnx.ModelProto
    module: PrecisionModule
    form: str | None
    ranges: Mapping[str, Range]
    calibration: Calibration

    @functools.cached_property
    def layers(self) -> Layers:
        return self.module.layers(self.model, self.ranges)

    @property
    def path(self) -> Path:
        spec = self.fp32.spec
        return artifact.graph_path(self.fp32.path.parent, spec.name, self.module.PRECISION, self.form)

    @property
    def unmeasured(self) -> Artifact:
        """What an executor has to know of a graph of this recipe: a search opens many, and describes only the last."""
        return dataclasses.replace(self.fp32, path=self.path, precision=self.module.PRECISION, form=self.form)

    def build(self, in_float: Collection[str]) -> onnx.ModelProto:
        """The graph that leaves these layers in float32."""
        return self.module.convert(self.model, self.ranges, form=self.form, in_float=in_float)

    def low_share(self, in_float: Collection[str]) -> float:
        """Of the layers' multiply-adds, the share in low precision."""
        work = self.layers.work
        return 1 - sum(work[layer] for layer in in_float) / sum(work.values())

    def described(self, in_float: Collection[str], budget: Budget, model: onnx.ModelProto) -> Artifact:
        """The artifact of `model`, which leaves these layers in float32 and is yet to be written."""
        reasons = self.layers.in_float
        return Artifact(
            path=self.path,
            kind="graph",
            precision=self.module.PRECISION,
            form=self.form,
            spec=self.fp32.spec,
            sha256="",
            made_at=artifact.now(),
            origin=Origin(
                command="export",
                version=__version__,
                weights=self.fp32.origin.weights,
                foreign=self.fp32.origin.foreign,
                graph=GraphOrigin(path=self.fp32.path.name, sha256=self.fp32.sha256),
                calibration=self.calibration,
            ),
            low_precision=LowPrecision(
                budget=budget,
                in_float={layer: reasons.get(layer, "gives accuracy back") for layer in sorted(in_float)},
                low_share=self.low_share(in_float),
                asked=executed.asked(model),
                executed={},
            ),
        )


def recipes(
    fp32: Artifact,
    wanted: Precision,
    forms: Sequence[str],
    parts: Parts,
    *,
    method: str | None,
    cache: Path | None,
    progress: Progress,
) -> list[Recipe]:
    """One for each graph that was asked for; all forms of a precision come from one calibration."""
    module = precision.module(wanted)
    _require_sensible(module, forms, method, cache)
    model = onnx.load(fp32.path)
    _require_quantizable(fp32, model)
    model = fp16.in_single(model)
    ranges: Mapping[str, Range]
    if cache is not None:
        ranges = calibration.from_cache(_text(cache), model, module.tensors(model))
        origin = Calibration(method="cache", cache={cache.name: artifact.sha256(cache)})
    else:
        photographs = Photographs(parts.calibrate, fp32.spec, parts.skipped)
        ranges, origin = _measured(fp32, model, module, photographs, method=method, progress=progress)
    spelled: Sequence[str | None] = list(dict.fromkeys(forms)) or list(module.FORMS) or [None]
    return [Recipe(fp32, model, module, form, ranges, origin) for form in spelled]


def _require_sensible(module: PrecisionModule, forms: Sequence[str], method: str | None, cache: Path | None) -> None:
    name = module.PRECISION
    if forms and not module.FORMS:
        raise InvalidRequestError(f"{name} has one form.", "Leave --form to --precision int8.")
    if module.METHOD is None and (method or cache):
        raise InvalidRequestError(
            f"{name} clips no range: it has no calibration method and no cache.", "Leave those to --precision int8."
        )
    if cache is not None and method is not None:
        raise InvalidRequestError("a calibration cache has its method in it.", "Give --calibration-cache alone.")


def _require_quantizable(fp32: Artifact, model: onnx.ModelProto) -> None:
    """An adopted graph may be quantized already."""
    if foreign.is_quantized(model):
        raise GateFailedError(
            f"{fp32.path} was quantized by whoever made it: it is taken as it is, and not quantized again.",
            "Adopt the network as it was before it was quantized.",
        )


def _measured(
    fp32: Artifact,
    model: onnx.ModelProto,
    module: PrecisionModule,
    photographs: Photographs,
    *,
    method: str | None,
    progress: Progress,
) -> tuple[Mapping[str, Range], Calibration]:
    """The ranges over photographs: their extremes, or clipped by a method."""
    tensors = module.tensors(model)
    if module.METHOD is None:
        with progress(f"Measuring the range of {fp32.spec.name}", len(photographs)) as done:
            extremes = calibration.extremes(model, tensors, photographs, done=done)
        return extremes, photographs.calibration(EXTREMES)
    chosen = method or module.METHOD
    with progress(f"Calibrating {fp32.spec.name}", 2 * len(photographs)) as done:
        ranges = calibration.collect(model, tensors, photographs, done=done).by(chosen)
    return ranges, photographs.calibration(chosen)


def _text(cache: Path) -> str:
    try:
        return cache.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidFileError(f"cannot read the calibration cache {cache}: {error}.", "Give a text file.") from error
