"""CUDA through cuda-bindings, NVIDIA's own package and the default; its runtime API uses the primary context."""

import contextlib
import ctypes
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from segdeploy.engines._cuda import Cuda, Handle, driver_version, failed, spelled
from segdeploy.target import Gpu


class Bindings(Cuda):
    name = "cuda-bindings"

    def __init__(self) -> None:
        from cuda.bindings import runtime

        self._runtime = runtime
        self._addresses: list[int] = []
        self._hosts: list[int] = []
        self._streams: list[Handle] = []
        self._events: list[Handle] = []
        self._graphs: list[Handle] = []
        self._call("cudaSetDevice", 0)

    def _call(self, function: str, *arguments: Handle) -> Handle:
        error, *values = getattr(self._runtime, function)(*arguments)
        if error != self._runtime.cudaError_t.cudaSuccess:
            raise failed(function, error.name)
        return values[0] if values else None

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        before = self._call("cudaGetDevice")
        self._call("cudaSetDevice", 0)  # the runtime's context of a device is the primary one
        try:
            yield
        finally:
            self._runtime.cudaSetDevice(before)

    def gpu(self) -> Gpu:
        facts = self._call("cudaGetDeviceProperties", 0)
        return Gpu(
            name=facts.name.decode().strip("\0"),
            compute_capability=f"{facts.major}.{facts.minor}",
            memory_mb=facts.totalGlobalMem // 2**20,
            driver=driver_version(),
            cuda=spelled(self._call("cudaDriverGetVersion")),
        )

    def allocate(self, size: int) -> int:
        self._addresses.append(self._call("cudaMalloc", size))
        return self._addresses[-1]

    def pinned(self, size: int) -> NDArray[np.uint8]:
        self._hosts.append(self._call("cudaHostAlloc", size, self._runtime.cudaHostAllocDefault))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self._hosts[-1]))

    def stream(self) -> Handle:
        self._streams.append(self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking))
        return self._streams[-1]

    def address_of(self, stream: Handle) -> int:
        return int(stream)

    def to_device(self, address: int, host: NDArray[np.uint8], stream: Handle) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, host.ctypes.data, host.nbytes, kind, stream)

    def to_host(self, host: NDArray[np.uint8], address: int, stream: Handle) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", host.ctypes.data, address, host.nbytes, kind, stream)

    def event(self) -> Handle:
        self._events.append(self._call("cudaEventCreateWithFlags", self._runtime.cudaEventDefault))
        return self._events[-1]

    def record(self, event: Handle, stream: Handle) -> None:
        self._call("cudaEventRecord", event, stream)

    def wait(self, stream: Handle, event: Handle) -> None:
        self._call("cudaStreamWaitEvent", stream, event, 0)

    def synchronize(self, event: Handle) -> None:
        self._call("cudaEventSynchronize", event)

    def elapsed_ms(self, start: Handle, end: Handle) -> float:
        return float(self._call("cudaEventElapsedTime", start, end))

    def capture(self, stream: Handle, work: Callable[[], bool]) -> Handle | None:
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        success = self._runtime.cudaError_t.cudaSuccess
        if self._runtime.cudaStreamBeginCapture(stream, mode)[0] != success:
            return None
        try:
            captured = work()
        finally:  # a stream that is left capturing runs nothing any more
            error, graph = self._runtime.cudaStreamEndCapture(stream)
        if error != success:
            return None
        error, instance = self._runtime.cudaGraphInstantiate(graph, 0) if captured else (None, None)
        self._call("cudaGraphDestroy", graph)
        if error != success:
            return None
        self._graphs.append(instance)
        return instance

    def launch(self, graph: Handle, stream: Handle) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def close(self) -> None:
        handed_out = {
            "cudaGraphExecDestroy": self._graphs,
            "cudaEventDestroy": self._events,
            "cudaStreamDestroy": self._streams,
            "cudaFreeHost": self._hosts,
            "cudaFree": self._addresses,
        }
        with self.active():
            for function, handles in handed_out.items():
                while handles:  # what fails here cannot be mended, and the rest is freed all the same
                    getattr(self._runtime, function)(handles.pop())


connect = Bindings
