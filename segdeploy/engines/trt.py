"""TensorRT 10.13 to 11: on the NVIDIA GPU that a plan was built on."""

from segdeploy.engines._tensorrt import CONCURRENT, DEVICES, FORM, OPENS, Flavour

_flavour = Flavour("trt", "tensorrt", cross=False, has_timing_cache=True, captures_itself=False)

RUNTIME = _flavour.runtime
PACKAGES = ("tensorrt",)
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
