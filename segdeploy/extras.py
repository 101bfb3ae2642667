"""The packages that the extras bring, and the one error where something needs a package that is not here."""

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Final

from segdeploy.errors import MissingRuntimeError

BROUGHT_BY: Final = {  # the module that is imported: what its package is called, and the extra that brings it
    "cuda": ("cuda-bindings", "rtx"),
    "jinja2": ("Jinja2", "report"),
    "onnx": ("onnx", "train"),
    "onnxruntime": ("onnxruntime", "cpu"),
    "onnxscript": ("onnxscript", "train"),
    "obstore": ("obstore", "stores"),
    "openvino": ("openvino", "openvino"),
    "pycuda": ("pycuda", "pycuda"),
    "pynvml": ("nvidia-ml-py", "bench"),
    "pyvips": ("pyvips", "huge"),
    "rasterio": ("rasterio", "geo"),
    "ray": ("ray", "ray"),
    "safetensors": ("safetensors", "train"),
    "tensorboard": ("tensorboard", "tensorboard"),
    "tensorrt": ("tensorrt", "tensorrt"),
    "tensorrt_rtx": ("tensorrt_rtx", "rtx"),
    "torch": ("PyTorch", "train"),
}


@contextlib.contextmanager
def named_where_missing() -> Iterator[None]:
    """Where a package of an extra cannot be imported, raise MissingRuntimeError with that extra. Also a decorator.

    An ImportError of our own modules is a defect, and stays one.
    """
    try:
        yield
    except ImportError as error:
        found = missing(error)
        if found is None:
            raise
        raise found from error


def missing(error: ImportError) -> MissingRuntimeError | None:
    """What an ImportError comes to for the user; None where no package of an extra is to blame."""
    module = _top(error.name or "")
    if module == _top(__name__):
        return None
    if module in BROUGHT_BY:
        is_absent = error.name == module and isinstance(error, ModuleNotFoundError)
        return absent(module) if is_absent or importlib.util.find_spec(module) is None else broken(module, error)
    importing = next((each for each in _modules_of(error) if each in BROUGHT_BY), None)
    return None if importing is None else broken(importing, error)


def absent(module: str) -> MissingRuntimeError:
    """A package that is not installed. The module is one of BROUGHT_BY."""
    package, extra = BROUGHT_BY[module]
    return MissingRuntimeError(f"{package} is not installed.", f"Install it: pip install 'segdeploy[{extra}]'")


def broken(module: str, error: Exception) -> MissingRuntimeError:
    """A package that is installed without something that it needs itself. The module is one of BROUGHT_BY."""
    package, extra = BROUGHT_BY[module]
    reason = " ".join(str(error).split()).rstrip(".")
    return MissingRuntimeError(
        f"{package} is installed, but does not load: {reason}.",
        f"Repair it: pip install --force-reinstall 'segdeploy[{extra}]'",
    )


def _modules_of(error: ImportError) -> Iterator[str]:
    """The packages whose code was running, the outermost first."""
    frame = error.__traceback__
    while frame is not None:
        yield _top(str(frame.tb_frame.f_globals.get("__name__", "")))
        frame = frame.tb_next


def _top(module: str) -> str:
    return module.partition(".")[0]
