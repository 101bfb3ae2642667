"""The way to the GPU: what is handed out is given back, whichever package stands behind it."""

import enum
import importlib
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from conftest import Run

from segdeploy.engines import _cuda, _cuda_bindings, _cuda_pycuda, trt_rtx
from segdeploy.errors import InvalidRequestError, MissingRuntimeError


def has_gpu() -> bool:
    try:
        trt_rtx.devices()
    except MissingRuntimeError:
        return False
    return True


without_gpu = pytest.mark.skipif(has_gpu(), reason="this machine has a GPU")


@pytest.fixture
def _no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda", "cuda.bindings", "pycuda", "pycuda.driver"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("_no_packages")
@pytest.mark.parametrize(
    "name,named,remedy",
    [
        (None, "cuda-bindings or pycuda is not installed", "pip install 'cuda-bindings>=13,<14'"),
        ("cuda-bindings", "cuda-bindings is not installed", "pip install 'cuda-bindings>=13,<14'"),
        ("pycuda", "pycuda is not installed", "pip install 'segdeploy[pycuda]'"),
    ],
)
def test_a_package_that_is_not_there_is_named_with_what_installs_it(name: str | None, named: str, remedy: str) -> None:
    with pytest.raises(MissingRuntimeError, match=named) as error:
        _cuda.connect(name)
    assert remedy in error.value.remedy


def test_an_unknown_package_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidRequestError, match="'opencl'") as error:
        _cuda.connect("opencl")
    assert error.value.exit_code == 2
    assert "cuda-bindings, pycuda" in error.value.remedy


def test_the_command_line_refuses_an_unknown_package(run: Run, tmp_path: Path) -> None:
    found = run("infer", tmp_path, "--cuda", "opencl")
    assert found.code == 2
    assert "cuda-bindings" in found.err
    assert found.err.count("\n") == 2


@without_gpu
def test_a_machine_without_a_driver_is_told_what_to_check() -> None:
    with pytest.raises(MissingRuntimeError, match="cudaErrorInsufficientDriver") as error:
        _cuda.connect()
    assert "nvidia-smi" in error.value.remedy
    assert "--engine ort:fp32" in error.value.remedy
    assert str(error.value).count("\n") == 1


def test_memory_that_is_not_there_is_no_missing_gpu() -> None:
    for reason in ("cudaErrorMemoryAllocation", "cuMemAlloc failed: out of memory"):
        assert "--max-batch" in _cuda.failed("cudaMalloc", reason).remedy


def test_versions_are_spelled_as_people_spell_them() -> None:
    assert [_cuda.spelled(version) for version in (13000, 12080, 13010)] == ["13.0", "12.8", "13.1"]


def test_the_driver_is_what_the_system_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cuda, "DRIVER_VERSION", tmp_path / "version")
    assert _cuda.driver_version() is None
    (tmp_path / "version").write_text("580.65.06\n")
    assert _cuda.driver_version() == "580.65.06"


HOST = np.zeros(8, np.uint8)


@without_gpu
@pytest.mark.parametrize(
    "method,arguments",
    [
        ("gpu", ()),
        ("allocate", (64,)),
        ("pinned", (64,)),
        ("stream", ()),
        ("to_device", (4096, HOST, "cudaStream_t")),
        ("to_host", (HOST, 4096, "cudaStream_t")),
        ("event", ()),
        ("record", ("cudaEvent_t", "cudaStream_t")),
        ("wait", ("cudaStream_t", "cudaEvent_t")),
        ("synchronize", ("cudaEvent_t",)),
        ("elapsed_ms", ("cudaEvent_t", "cudaEvent_t")),
        ("launch", ("cudaGraphExec_t", "cudaStream_t")),
    ],
    ids=str,
)
def test_every_call_reaches_the_library(method: str, arguments: tuple[Any, ...]) -> None:
    """With the types it takes: what it says is that there is no driver, and no TypeError comes before."""
    from cuda.bindings import runtime

    cuda = object.__new__(_cuda_bindings.Bindings)
    vars(cuda).update(_runtime=runtime, _addresses=[], _hosts=[], _streams=[], _events=[], _graphs=[])
    handed = [getattr(runtime, each)() if isinstance(each, str) else each for each in arguments]
    with pytest.raises(MissingRuntimeError, match="cudaErrorInsufficientDriver"):
        getattr(cuda, method)(*handed)


@without_gpu
def test_a_stream_is_an_address_to_tensorrt() -> None:
    from cuda.bindings import runtime

    cuda = object.__new__(_cuda_bindings.Bindings)
    assert cuda.address_of(runtime.cudaStream_t(4242)) == 4242


@without_gpu
@pytest.mark.parametrize(
    "function,kind",
    [
        ("cudaStreamEndCapture", "cudaStream_t"),
        ("cudaGraphExecDestroy", "cudaGraphExec_t"),
        ("cudaGraphDestroy", "cudaGraph_t"),
        ("cudaEventDestroy", "cudaEvent_t"),
        ("cudaStreamDestroy", "cudaStream_t"),
        ("cudaFreeHost", None),
        ("cudaFree", None),
    ],
)
def test_what_ends_and_frees_takes_what_was_handed_out(function: str, kind: str | None) -> None:
    from cuda.bindings import runtime

    error, *_ = getattr(runtime, function)(getattr(runtime, kind)() if kind else 4096)
    assert error == runtime.cudaError_t.cudaErrorInsufficientDriver


Error = enum.IntEnum("Error", {"cudaSuccess": 0, "cudaErrorStreamCaptureUnsupported": 900})
NAMES = {
    "cudaError_t": Error,
    "cudaMemcpyKind": types.SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2),
    "cudaStreamCaptureMode": types.SimpleNamespace(cudaStreamCaptureModeThreadLocal=1),
    "cudaHostAllocDefault": 0,
    "cudaStreamNonBlocking": 1,
    "cudaEventDefault": 0,
}


class FakeRuntime(types.ModuleType):
    """`cuda.bindings.runtime` that hands out numbers and remembers what was done with them."""

    GIVING: ClassVar = {
        "cudaMalloc": "cudaFree",
        "cudaHostAlloc": "cudaFreeHost",
        "cudaStreamCreateWithFlags": "cudaStreamDestroy",
        "cudaEventCreateWithFlags": "cudaEventDestroy",
        "cudaStreamEndCapture": "cudaGraphDestroy",
        "cudaGraphInstantiate": "cudaGraphExecDestroy",
    }

    def __init__(self) -> None:
        super().__init__("cuda.bindings.runtime")
        vars(self).update(NAMES)
        self.calls: list[str] = []
        self.alive: dict[int, str] = {}  # and what frees it
        self.failing: set[str] = set()
        self._buffers: list[np.ndarray[Any, Any]] = []

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any function of the package
        if not name.startswith("cuda"):
            raise AttributeError(name)

        def call(*arguments: Any) -> tuple[Any, ...]:  # noqa: ANN401
            self.calls.append(name)
            if name in self.failing:
                return Error(900), None
            if name in self.GIVING:
                return Error(0), self._given(name, arguments)
            if name in self.GIVING.values():
                assert self.alive.pop(arguments[0]) == name
            return (Error(0),)

        return call

    def _given(self, name: str, arguments: tuple[Any, ...]) -> int:
        handle = 1000 + len(self.calls)
        if name == "cudaHostAlloc":
            self._buffers.append(np.zeros(arguments[0], np.uint8))
            handle = self._buffers[-1].ctypes.data
        self.alive[handle] = self.GIVING[name]
        return handle


@pytest.fixture
def fake_runtime(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    fake = FakeRuntime()
    package = importlib.import_module("cuda.bindings")
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)
    monkeypatch.setattr(package, "runtime", fake, raising=False)
    return fake


def test_everything_that_was_handed_out_is_freed_memory_last(fake_runtime: FakeRuntime) -> None:
    """Streams may still read it: they are destroyed first, and the graphs that name them before."""
    cuda = _cuda.connect("cuda-bindings")
    with cuda.active():
        cuda.allocate(8)
        pinned = cuda.pinned(8)
        pinned[:] = 7
        stream, event = cuda.stream(), cuda.event()
        cuda.to_device(cuda.allocate(8), pinned, stream)
        cuda.record(event, stream)
        cuda.launch(cuda.capture(stream, lambda: True), stream)
    del fake_runtime.calls[:]
    cuda.close()
    assert not fake_runtime.alive
    order = [call for call in dict.fromkeys(fake_runtime.calls) if call not in {"cudaGetDevice", "cudaSetDevice"}]
    assert order == ["cudaGraphExecDestroy", "cudaEventDestroy", "cudaStreamDestroy", "cudaFreeHost", "cudaFree"]


def test_the_device_of_the_thread_is_left_as_it_was(fake_runtime: FakeRuntime) -> None:
    """PyTorch, in the same thread, may use another."""
    cuda = _cuda.connect("cuda-bindings")
    del fake_runtime.calls[:]
    with pytest.raises(ZeroDivisionError), cuda.active():
        raise ZeroDivisionError
    assert fake_runtime.calls == ["cudaGetDevice", "cudaSetDevice", "cudaSetDevice"]


def test_pinned_memory_is_an_array_over_what_was_given(fake_runtime: FakeRuntime) -> None:
    cuda = _cuda.connect("cuda-bindings")
    pinned = cuda.pinned(12)
    assert pinned.dtype == np.uint8
    assert (pinned.shape, pinned.ctypes.data) == ((12,), next(iter(fake_runtime.alive)))


def test_a_capture_keeps_no_graph_but_the_one_that_runs(fake_runtime: FakeRuntime) -> None:
    cuda = _cuda.connect("cuda-bindings")
    stream = cuda.stream()
    assert cuda.capture(stream, lambda: True) is not None
    assert sorted(fake_runtime.alive.values()) == ["cudaGraphExecDestroy", "cudaStreamDestroy"]


@pytest.mark.parametrize("failing,works", [({"cudaStreamEndCapture"}, True), (set(), False)])
def test_a_capture_that_fails_is_ended_and_gives_none(
    fake_runtime: FakeRuntime,
    failing: set[str],
    works: bool,  # noqa: FBT001 - a case
) -> None:
    """A stream that is left capturing runs nothing any more."""
    cuda = _cuda.connect("cuda-bindings")
    stream = cuda.stream()
    fake_runtime.failing = failing
    assert cuda.capture(stream, lambda: works) is None
    assert fake_runtime.calls.count("cudaStreamBeginCapture") == fake_runtime.calls.count("cudaStreamEndCapture") == 1


class PyCudaError(Exception):
    pass


class Owned:
    """Something of pycuda's: made where a context is current; it ends with the last who holds it, or by `free`."""

    driver: ClassVar["FakePyCuda"]

    def __init__(self) -> None:
        if not self.driver.stack():
            raise PyCudaError("no currently active context")
        self.driver.alive += 1

    def free(self) -> None:
        assert self.driver.stack()
        self.driver.alive -= 1
        self.free = lambda: None  # type: ignore[method-assign]
        self.freed = True

    def __del__(self) -> None:
        if not hasattr(self, "freed"):
            self.driver.alive -= 1


class Allocation(Owned):
    def __int__(self) -> int:
        return 4096


class Locked(Owned):
    """Page-locked memory: the base of the array that pycuda gives."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._memory = np.zeros(size, np.uint8)

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self._memory.__array_interface__


class PyCudaEvent(Owned):
    stream: object = None

    def record(self, stream: object) -> None:
        self.stream = stream

    def synchronize(self) -> None:
        assert self.stream is not None

    def time_till(self, event: "PyCudaEvent") -> float:
        assert isinstance(event, PyCudaEvent)
        return 1.5


class PyCudaStream(Owned):
    handle = 99

    def __init__(self, flags: int = 0) -> None:
        super().__init__()
        self.flags = flags

    def wait_for_event(self, event: object) -> None:
        assert isinstance(event, PyCudaEvent)


class Context:
    @staticmethod
    def pop() -> None:
        if not Owned.driver.stack():
            raise PyCudaError("cannot pop non-current context")
        Owned.driver.stack().pop()

    def push(self) -> None:
        assert Owned.driver.retained
        Owned.driver.stack().append(self)

    def __del__(self) -> None:
        Owned.driver.retained -= 1


class Device:
    def __init__(self, number: int) -> None:
        assert number == 0

    def name(self) -> str:
        return "Fake RTX 2"

    def compute_capability(self) -> tuple[int, int]:
        return 12, 0

    def total_memory(self) -> int:
        return 8 * 2**30

    def retain_primary_context(self) -> Context:
        Owned.driver.retained += 1
        return Context()


class FakePyCuda(types.ModuleType):
    """`pycuda.driver` as its documentation describes it; contexts are on a stack of each thread."""

    def __init__(self) -> None:
        super().__init__("pycuda.driver")
        vars(self).update(Error=PyCudaError, Context=Context, Device=Device, Stream=PyCudaStream, Event=PyCudaEvent)
        Owned.driver = self
        self.alive = self.retained = 0
        self.failing = False
        self._thread = threading.local()

    def stack(self) -> list[object]:
        if not hasattr(self._thread, "stack"):
            self._thread.stack = []
        found: list[object] = self._thread.stack
        return found

    def init(self) -> None:
        if self.failing:
            raise PyCudaError("cuInit failed: no CUDA-capable device is detected")

    def get_driver_version(self) -> int:
        return 13010

    def mem_alloc(self, size: int) -> Allocation:
        if size > 2**30:
            raise PyCudaError("cuMemAlloc failed: out of memory")
        return Allocation()

    def pagelocked_empty(self, shape: int, dtype: type) -> Any:  # noqa: ANN401 - an array
        made = np.asarray(Locked(shape))
        assert made.dtype == dtype
        assert type(made.base).__name__ == "Locked"
        return made

    def memcpy_htod_async(self, dest: int, src: object, stream: object) -> None:
        assert (dest, type(src), type(stream)) == (4096, np.ndarray, PyCudaStream)
        assert self.stack()

    def memcpy_dtoh_async(self, dest: object, src: int, stream: object) -> None:
        self.memcpy_htod_async(src, dest, stream)


@pytest.fixture
def pycuda(monkeypatch: pytest.MonkeyPatch) -> FakePyCuda:
    driver, package = FakePyCuda(), types.ModuleType("pycuda")
    package.driver = driver  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    return driver


def use(cuda: _cuda.Cuda) -> None:
    """Every method once."""
    with cuda.active():
        assert cuda.gpu().compute_capability == "12.0"
        address, pinned, stream, event = cuda.allocate(64), cuda.pinned(64), cuda.stream(), cuda.event()
        cuda.to_device(address, pinned, stream)
        cuda.record(event, stream)
        cuda.wait(stream, event)
        cuda.to_host(pinned, address, stream)
        cuda.synchronize(event)
        assert cuda.elapsed_ms(event, event) == 1.5
        assert cuda.address_of(stream) == 99
        assert cuda.capture(stream, lambda: True) is None
        assert (address, pinned.nbytes, stream.flags) == (4096, 64, 1)


def test_pycuda_leaves_no_context_in_the_thread(pycuda: FakePyCuda) -> None:
    """Also where the body of `active` raises: PyTorch, in the same thread, has its own."""
    cuda = _cuda.connect("pycuda")
    assert pycuda.stack() == []
    use(cuda)
    assert pycuda.stack() == []
    with pytest.raises(ZeroDivisionError), cuda.active():
        raise ZeroDivisionError
    with pytest.raises(MissingRuntimeError, match="too little free memory"), cuda.active():
        cuda.allocate(2**40)
    assert pycuda.stack() == []
    cuda.close()
    assert (pycuda.stack(), pycuda.alive) == ([], 0)
    del cuda
    assert pycuda.retained == 0


def test_pycuda_works_from_another_thread(pycuda: FakePyCuda) -> None:
    cuda = _cuda.connect("pycuda")
    with ThreadPoolExecutor(1) as pool:
        pool.submit(use, cuda).result()
        assert pool.submit(pycuda.stack).result() == []
    cuda.close()
    assert pycuda.alive == 0


def test_pycuda_without_a_device_is_an_error_with_its_remedy(pycuda: FakePyCuda) -> None:
    pycuda.failing = True
    with pytest.raises(MissingRuntimeError, match="no CUDA-capable device") as error:
        _cuda.connect("pycuda")
    assert "nvidia-smi" in error.value.remedy


@pytest.mark.usefixtures("pycuda")
def test_pycuda_serves_where_it_is_the_only_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    assert isinstance(_cuda.connect(), _cuda_pycuda.PyCuda)


def test_a_capture_that_raises_is_ended(fake_runtime: FakeRuntime) -> None:
    cuda = _cuda.connect("cuda-bindings")

    def work() -> bool:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cuda.capture(cuda.stream(), work)
    assert "cudaStreamEndCapture" in fake_runtime.calls


def test_a_capture_of_work_that_failed_leaves_no_graph(fake_runtime: FakeRuntime) -> None:
    cuda = _cuda.connect("cuda-bindings")
    assert cuda.capture(cuda.stream(), lambda: False) is None
    cuda.close()
    assert not fake_runtime.alive


@pytest.mark.parametrize("function", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"])
def test_what_cannot_be_captured_gives_none(fake_runtime: FakeRuntime, function: str) -> None:
    """The network has run already: the engine goes on without a graph."""
    cuda = _cuda.connect("cuda-bindings")
    fake_runtime.failing = {function}
    assert cuda.capture(cuda.stream(), lambda: True) is None
    cuda.close()
    assert not fake_runtime.alive


def test_what_cannot_be_freed_does_not_keep_the_rest(fake_runtime: FakeRuntime) -> None:
    cuda = _cuda.connect("cuda-bindings")
    cuda.stream()
    cuda.allocate(8)
    fake_runtime.failing = {"cudaStreamDestroy"}
    cuda.close()
    assert "cudaFree" not in fake_runtime.alive.values()
