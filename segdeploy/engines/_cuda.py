"""The GPU through one interface: memory, streams, events, graphs. Nothing else here calls CUDA.

Two packages can stand behind it, cuda-bindings (the default) and pycuda. Both use the device's primary context, which
PyTorch and TensorRT share, and leave no context behind in the thread that called.
"""

import abc
import contextlib
import ctypes
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from segdeploy.errors import InvalidRequestError, MissingRuntimeError
from segdeploy.target import Gpu

Handle = Any  # whatever the package behind the seam gives

FIRST_CALLS = ("cuInit", "cudaGetDevice", "cudaSetDevice")  # what fails here fails for want of a GPU
DRIVER_VERSION = Path("/sys/module/nvidia/version")


class Cuda(abc.ABC):
    """What segdeploy needs of CUDA. Handles are whatever the package gives; addresses are integers.

    Every method but `close` is called inside `active()`. Copies and launches return at once; `to_device` and `to_host`
    need pinned memory for that.
    """

    name: ClassVar[str]

    @abc.abstractmethod
    def active(self) -> contextlib.AbstractContextManager[None]:
        """The primary context is this thread's, inside the block."""

    @abc.abstractmethod
    def gpu(self) -> Gpu: ...

    @abc.abstractmethod
    def allocate(self, size: int) -> int:
        """The address of `size` bytes on the device; they live until `close`."""

    @abc.abstractmethod
    def pinned(self, size: int) -> NDArray[np.uint8]:
        """`size` bytes of page-locked memory; they live until `close`."""

    @abc.abstractmethod
    def stream(self) -> Handle: ...

    @abc.abstractmethod
    def address_of(self, stream: Handle) -> int:
        """A stream as TensorRT takes it."""

    @abc.abstractmethod
    def to_device(self, address: int, host: NDArray[np.uint8], stream: Handle) -> None: ...

    @abc.abstractmethod
    def to_host(self, host: NDArray[np.uint8], address: int, stream: Handle) -> None: ...

    @abc.abstractmethod
    def event(self) -> Handle: ...

    @abc.abstractmethod
    def record(self, event: Handle, stream: Handle) -> None: ...

    @abc.abstractmethod
    def wait(self, stream: Handle, event: Handle) -> None:
        """What is put into the stream from now on starts after the event."""

    @abc.abstractmethod
    def synchronize(self, event: Handle) -> None:
        """Return once the event has happened."""

    @abc.abstractmethod
    def elapsed_ms(self, start: Handle, end: Handle) -> float: ...

    @abc.abstractmethod
    def capture(self, stream: Handle, work: Callable[[], bool]) -> Handle | None:
        """A graph of what `work` puts into the stream, ready to launch; None where that cannot be captured."""

    @abc.abstractmethod
    def launch(self, graph: Handle, stream: Handle) -> None: ...

    @abc.abstractmethod
    def close(self) -> None:
        """Free all that was handed out; nothing may run any more."""


ADAPTERS = {"cuda-bindings": "_cuda_bindings", "pycuda": "_cuda_pycuda"}


def connect(name: str | None = None) -> Cuda:
    """The GPU through the package of that name, or through the first that is installed.

    Raise MissingRuntimeError where there is no package, no driver or no device.
    """
    if name is not None and name not in ADAPTERS:
        raise InvalidRequestError(f"there is no CUDA package {name!r}.", f"Choose one of {', '.join(ADAPTERS)}.")
    for adapter in [ADAPTERS[name]] if name else ADAPTERS.values():
        try:
            module = importlib.import_module(f"segdeploy.engines.{adapter}")
            cuda: Cuda = module.connect()
        except ImportError:
            continue
        return cuda
    raise MissingRuntimeError(
        f"{name or ' or '.join(ADAPTERS)} is not installed or does not load.",
        f"Install it: pip install '{'segdeploy[pycuda]' if name == 'pycuda' else 'cuda-bindings>=13,<14'}'",
    )


def failed(function: str, reason: str) -> MissingRuntimeError:
    if "MemoryAllocation" in reason or "out of memory" in reason:
        return MissingRuntimeError(
            f"the GPU has too little free memory ({function}: {reason}).",
            "End what else uses the GPU, or build with a smaller --max-batch.",
        )
    what = "no NVIDIA GPU can be used here" if function in FIRST_CALLS else "the GPU failed"
    return MissingRuntimeError(
        f"{what} ({function}: {reason}).",
        "Check nvidia-smi and the driver (580 or newer), or choose a runtime for the CPU: --engine ort:fp32.",
    )


def has_gpu() -> bool:
    """Whether the driver finds an NVIDIA GPU; asked of the driver itself, so that no package is needed."""
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except (OSError, AttributeError):
        return False


def driver_version() -> str | None:
    return DRIVER_VERSION.read_text(encoding="ascii").strip() if DRIVER_VERSION.is_file() else None


def spelled(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def gpu_here() -> Gpu:
    """The GPU of this machine. Raise MissingRuntimeError where there is none, or no package that reaches it."""
    cuda = connect()
    try:
        with cuda.active():
            return cuda.gpu()
    finally:
        cuda.close()
