"""CUDA through pycuda, on the primary context: pushed for each act and popped after it. It has no CUDA graphs."""

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from segdeploy.engines._cuda import Cuda, Handle, driver_version, failed, spelled
from segdeploy.target import Gpu

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING, for which pycuda has no name


class PyCuda(Cuda):
    name = "pycuda"

    def __init__(self) -> None:
        import pycuda.driver

        self._driver = pycuda.driver
        self._memory: list[Handle] = []  # streams and events end with the last who holds them
        try:
            self._driver.init()
            self._device = self._driver.Device(0)
            self._context = self._device.retain_primary_context()
        except self._driver.Error as error:
            raise failed("cuInit", str(error)) from error

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        self._context.push()
        try:
            yield
        except self._driver.Error as error:
            raise failed("a call", str(error)) from error
        finally:
            self._driver.Context.pop()

    def gpu(self) -> Gpu:
        return Gpu(
            name=self._device.name(),
            compute_capability="{}.{}".format(*self._device.compute_capability()),
            memory_mb=self._device.total_memory() // 2**20,
            driver=driver_version(),
            cuda=spelled(self._driver.get_driver_version()),
        )

    def allocate(self, size: int) -> int:
        self._memory.append(self._driver.mem_alloc(size))
        return int(self._memory[-1])

    def pinned(self, size: int) -> NDArray[np.uint8]:
        memory: NDArray[np.uint8] = self._driver.pagelocked_empty(size, np.uint8)
        self._memory.append(memory.base)  # pycuda's own object, which owns it
        return memory

    def stream(self) -> Handle:
        return self._driver.Stream(NON_BLOCKING)

    def address_of(self, stream: Handle) -> int:
        return int(stream.handle)

    def to_device(self, address: int, host: NDArray[np.uint8], stream: Handle) -> None:
        self._driver.memcpy_htod_async(address, host, stream)

    def to_host(self, host: NDArray[np.uint8], address: int, stream: Handle) -> None:
        self._driver.memcpy_dtoh_async(host, address, stream)

    def event(self) -> Handle:
        return self._driver.Event()

    def record(self, event: Handle, stream: Handle) -> None:
        event.record(stream)

    def wait(self, stream: Handle, event: Handle) -> None:
        stream.wait_for_event(event)

    def synchronize(self, event: Handle) -> None:
        event.synchronize()

    def elapsed_ms(self, start: Handle, end: Handle) -> float:
        return float(start.time_till(end))

    def capture(self, stream: Handle, work: Callable[[], bool]) -> None:  # noqa: ARG002 - pycuda has no graphs
        return None

    def launch(self, graph: Handle, stream: Handle) -> None:
        raise NotImplementedError

    def close(self) -> None:
        # No `detach`: it leaves the context on this thread's stack. The last who holds it releases it.
        with self.active():
            while self._memory:
                self._memory.pop().free()


connect = PyCuda
