"""An engine without a network, for tests of what surrounds one."""

from typing import ClassVar

import numpy as np

from segdeploy.engines._base import ClassMaps, Engine, Images
from segdeploy.spec import Precision, Spec


class NullEngine(Engine):
    """Draws a class map at once: the class of a pixel is its red value, modulo the number of classes.

    `segdeploy.NullEngine(spec).segment(photo)` needs no runtime and no weights.
    """

    runtime: ClassVar[str] = "null"
    concurrent: ClassVar[bool] = True

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec, device="cpu", delivered=Precision.FP32)

    def _submit(self, batch: Images) -> ClassMaps:
        inside = slice(self.spec.margin, -self.spec.margin or None)
        return batch[:, inside, inside, 0] % np.uint8(min(len(self.spec.classes), 255))

    def _release(self) -> None: ...
