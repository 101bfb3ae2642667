"""TensorRT-RTX 1.x: plans for any RTX GPU, built on any machine, with a GPU or without."""

from segdeploy.engines._tensorrt import CONCURRENT, DEVICES, FORM, OPENS, Flavour

_flavour = Flavour("trt-rtx", "tensorrt_rtx", cross=True, has_timing_cache=False, captures_itself=True)

RUNTIME = _flavour.runtime
PACKAGES = ("tensorrt-rtx",)
compile, devices, target = _flavour.compile, _flavour.devices, _flavour.target  # noqa: A001
import_runtime, layer_ms, open = _flavour.import_runtime, _flavour.layer_ms, _flavour.open  # noqa: A001

__all__ = [
    "CONCURRENT",
    "DEVICES",
    "FORM",
    "OPENS",
    "PACKAGES",
    "RUNTIME",
    "compile",
    "devices",
    "import_runtime",
    "layer_ms",
    "open",
    "target",
]
