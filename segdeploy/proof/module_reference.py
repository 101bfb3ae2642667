"""A torch module that somebody else wrote, in PyTorch: the masks that are right by definition."""

import functools
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from segdeploy import metrics
from segdeploy.errors import GateFailedError
from segdeploy.graphs import reading
from segdeploy.origin import GraphReading
from segdeploy.proof.reference import Drawn, Mask, near_ties
from segdeploy.proof.torch_reference import first_not_finite
from segdeploy.spec import Spec
from segdeploy.torch_modules import archives, outputs, trial

Array = NDArray[Any]


def of_file(path: Path, spec: Spec, how: GraphReading) -> "ModuleReference":
    """The module of a `.pt2` or a TorchScript archive."""
    saved, _ = archives.opened(path)
    module, _ = trial.prepared(saved, str(path))
    return ModuleReference(module, spec, how, named=str(path))


class ModuleReference:
    """The module itself, its input prepared and its output read by NumPy; `reading` says how.

    It runs twice: in float32 as it is, and in float64 on an input prepared in float32. Where a module cannot compute
    in float64, the second run is in float32 without oneDNN, which adds in another order.
    """

    kind: Final = "PyTorch"

    def __init__(self, module: nn.Module, spec: Spec, how: GraphReading, *, named: str) -> None:
        self.spec = spec
        self.reading = how
        self._named = named
        self._module = module
        self._known = Drawn()

    def class_map(self, image: NDArray[np.uint8], /) -> tuple[metrics.ClassMap, Mask]:
        """(H, W, 3) -> the class map (H, W) and which of its pixels are near-ties; kept, for a budget asks again."""
        return self._known.of(image, self._drawn)

    def pool_ties(self, image: NDArray[np.uint8], /) -> Mask:
        """(H, W, 3) -> (H, W): none; where a foreign module pools, nobody knows."""
        return np.zeros(image.shape[:2], bool)

    @functools.cached_property
    def _double(self) -> nn.Module | None:
        """The module in float64; None where it mixes types of its own."""
        size = self.spec.height, self.spec.width
        with archives.quiet():
            double = trial.copied(self._module).double()
        example = trial.noise(len(self.reading.preprocessing.mean), size).double()
        return double if trial.failure(double, example) is None else None

    def _drawn(self, image: NDArray[np.uint8]) -> tuple[metrics.ClassMap, Mask]:
        single = self._planes(self._module, reading.as_given(image, self.reading))
        other = self._otherwise(reading.as_rounded(image, self.reading))
        if self.reading.kind == "class map":
            drawn, again = (self._classes(plane) for plane in (single[0], other[0]))
            return drawn, drawn != again
        height, width = self.spec.height, self.spec.width
        scores, others = (reading.scores_of(each, self.reading, height, width) for each in (single, other))
        return scores.argmax(axis=0).astype(np.uint8), near_ties(scores, others)

    def _classes(self, plane: Array) -> metrics.ClassMap:
        """(h, w) values of a class map -> class indices (H, W)."""
        indices = reading.from_values(plane, self.reading.values)
        rows = reading.nearest(len(plane), self.spec.height)
        return indices[rows][:, reading.nearest(plane.shape[1], self.spec.width)]

    def _otherwise(self, given: Array) -> Array:
        if self._double is not None and self.reading.dtype == "float32":
            return self._planes(self._double, given.astype(np.float64))
        with torch.backends.mkldnn.flags(enabled=False):
            return self._planes(self._module, given)

    def _planes(self, module: nn.Module, given: Array) -> Array:
        """The output (K, h, w)."""
        images = torch.from_numpy(given)
        with torch.inference_mode():
            found = outputs.named(module(images))[self.reading.output].numpy()
        planes = reading.planes(found, self.reading)
        if planes.dtype.kind == "f" and not np.isfinite(planes).all():
            raise GateFailedError(
                f"the output of {self._named} is not finite (NaN or infinite), from the module "
                f"{first_not_finite(module, images)!r} on.",
                "Check the preprocessing and the weights: the network computes no numbers.",
            )
        return planes
