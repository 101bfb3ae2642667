"""A GPU that does everything as late and in as odd an order as CUDA permits, and a network that runs on it."""

import contextlib
import dataclasses
import random
import threading
import types
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from segdeploy.engines._cuda import Cuda
from segdeploy.target import Gpu

Bytes = NDArray[np.uint8]
CLASSES = 7


def expected(batch: Bytes, margin: int = 0) -> Bytes:
    """The class maps that `FakeNetwork` gives."""
    inner = batch[:, margin : batch.shape[1] - margin, margin : batch.shape[2] - margin]
    class_maps: Bytes = (inner.sum(axis=-1, dtype=np.int64) % CLASSES).astype(np.uint8)
    return class_maps


class Event:
    def __init__(self) -> None:
        self.asked, self.happened, self.at = 0, 0, 0.0


@dataclasses.dataclass(slots=True)
class Step:
    """Something a stream will do; a wait is nothing but its condition."""

    kind: str
    act: Callable[[], None] = lambda: None
    event: Event | None = None
    nth: int = 0

    def is_ready(self) -> bool:
        return self.kind != "wait" or self.event is None or self.event.happened >= self.nth


class Stream:
    def __init__(self, address: int) -> None:
        self.address = address
        self.steps: deque[Step] = deque()
        self.captured: list[Step] | None = None

    def put(self, step: Step) -> None:
        (self.steps if self.captured is None else self.captured).append(step)


class FakeCuda(Cuda):
    """Nothing runs before something waits for it; copies read and write memory when they run.

    `captures`: whether a stream can be captured. `before_waiting`: called by a thread before it waits for an event.
    `count`: what was handed out and done since the start; `alive`: what was not freed; `done`: the steps that ran.
    """

    name: ClassVar[str] = "fake"

    def __init__(self, seed: int = 0, *, capability: str = "8.9", captures: bool = True) -> None:
        self.count: Counter[str] = Counter()
        self.alive: Counter[str] = Counter()
        self.done: list[str] = []
        self.captures = captures
        self._held: set[str] = set()
        self.before_waiting: Callable[[], None] = lambda: None
        self.closed = False
        self._capability = capability
        self._random = random.Random(seed)  # noqa: S311 - an order, no secret
        self._memory: dict[int, Bytes] = {}
        self._pinned: list[Bytes] = []
        self.streams: list[Stream] = []
        self._lock = threading.RLock()
        self._thread = threading.local()

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        assert not self.closed
        self._thread.depth = getattr(self._thread, "depth", 0) + 1
        try:
            yield
        finally:
            self._thread.depth -= 1

    def _hand_out(self, kind: str) -> None:
        self._require_active()
        self.count[kind] += 1
        self.alive[kind] += 1

    def _require_active(self) -> None:
        assert not self.closed
        assert getattr(self._thread, "depth", 0), "called outside active()"

    def gpu(self) -> Gpu:
        self._require_active()
        return Gpu("Fake RTX 1", self._capability, 8192, "590.1", "13.0")

    def allocate(self, size: int) -> int:
        self._hand_out("device")
        address = 0x1000_0000 * (len(self._memory) + 1)
        self._memory[address] = np.full(size, 0xAB, np.uint8)
        return address

    def pinned(self, size: int) -> Bytes:
        self._hand_out("pinned")
        self._pinned.append(np.full(size, 0xCD, np.uint8))
        return self._pinned[-1]

    def stream(self) -> Stream:
        self._hand_out("stream")
        self.streams.append(Stream(0x77 + len(self.streams)))
        return self.streams[-1]

    def address_of(self, stream: Stream) -> int:
        return stream.address

    def event(self) -> Event:
        self._hand_out("event")
        return Event()

    def to_device(self, address: int, host: Bytes, stream: Stream) -> None:
        assert any(np.shares_memory(host, pinned) for pinned in self._pinned), "not page-locked: no overlap"
        self.put(stream, Step("to_device", lambda: np.copyto(self.at(address)[: host.size], host)))

    def to_host(self, host: Bytes, address: int, stream: Stream) -> None:
        assert any(np.shares_memory(host, pinned) for pinned in self._pinned), "not page-locked: no overlap"
        self.put(stream, Step("to_host", lambda: np.copyto(host, self.at(address)[: host.size])))

    def record(self, event: Event, stream: Stream) -> None:
        event.asked += 1
        nth = event.asked

        def happen() -> None:
            event.happened, event.at = nth, float(len(self.done))

        self.put(stream, Step("record", happen, event, nth))

    def wait(self, stream: Stream, event: Event) -> None:
        self.put(stream, Step("wait", event=event, nth=event.asked))

    def synchronize(self, event: Event) -> None:
        self._require_active()
        self.before_waiting()
        with self._lock:
            while event.happened < event.asked:
                self._advance(event)

    def elapsed_ms(self, start: Event, end: Event) -> float:
        assert 0 < start.happened == start.asked
        assert 0 < end.happened == end.asked
        return end.at - start.at

    def capture(self, stream: Stream, work: Callable[[], bool]) -> list[Step] | None:
        self._require_active()
        self.count["capture"] += 1
        steps: list[Step] = []
        stream.captured = steps
        worked = work()
        stream.captured = None
        if not worked or not self.captures:
            return None
        self._hand_out("graph")
        return steps

    def launch(self, graph: list[Step], stream: Stream) -> None:
        self.count["launch"] += 1
        for step in graph:
            self.put(stream, step)

    def close(self) -> None:
        with self._lock:
            assert not self.closed
            assert not any(stream.steps for stream in self.streams), "memory is freed under what still runs"
            for memory in (*self._memory.values(), *self._pinned):
                memory[:] = 0xEE
            self.alive.clear()
            self.closed = True

    def at(self, address: int) -> Bytes:
        return self._memory[address]

    def stream_at(self, address: int) -> Stream:
        return next(stream for stream in self.streams if stream.address == address)

    def put(self, stream: Stream, step: Step) -> None:
        self._require_active()
        with self._lock:
            stream.put(step)

    def run_all_but(self, *kinds: str) -> None:
        """Let every stream go on to its first step of such a kind, or to what waits for one."""
        with self._lock:
            self._held = set(kinds)
            while runnable := self._runnable():
                self._run(runnable[0])
            self._held = set()

    def _runnable(self) -> list[Stream]:
        heads = [(stream, stream.steps[0]) for stream in self.streams if stream.steps]
        return [stream for stream, head in heads if head.is_ready() and head.kind not in self._held]

    def _advance(self, event: Event) -> None:
        """A step of any stream, or (every other time) the one that brings the event nearer, and no other."""
        runnable = self._runnable()
        assert runnable, "it waits for what cannot happen"
        self._run(self._bringing(event) if self._random.random() < 0.5 else self._random.choice(runnable))

    def _bringing(self, event: Event) -> Stream:
        steps = [(stream, step) for stream in self.streams for step in stream.steps]
        stream = next(stream for stream, step in steps if step.kind == "record" and step.event is event)
        head = stream.steps[0]
        return stream if head.is_ready() or head.event is None else self._bringing(head.event)

    def _run(self, stream: Stream) -> None:
        step = stream.steps.popleft()
        step.act()
        self.done.append(step.kind)


class FakeNetwork:
    """An engine of TensorRT's: the sum of a pixel's colours, modulo seven, or what `draws` gives.

    `answers`: what the next runs say of themselves; True once there is nothing left. `contexts`: all that were made.
    """

    draws: Callable[[Bytes], Bytes] | None = None
    layers: ClassVar[dict[str, float]] = {}  # what a profiler is told: milliseconds of a call
    device_memory_size_v2 = 64

    def __init__(self, cuda: FakeCuda, margin: int = 0, information: str = "{}") -> None:
        self.answers: deque[bool | Exception] = deque()
        self.contexts: list[FakeContext] = []
        self.cuda, self._margin, self._information = cuda, margin, information

    def create_runtime_config(self) -> Any:  # noqa: ANN401 - as TensorRT-RTX's binding
        return types.SimpleNamespace(cuda_graph_strategy=None)

    def create_execution_context(self, how: object = None) -> Any:  # noqa: ANN401 - as TensorRT's binding
        self.contexts.append(FakeContext(self, how))
        return self.contexts[-1]

    def create_engine_inspector(self) -> Any:  # noqa: ANN401 - as TensorRT's binding
        return self

    def get_engine_information(self, _form: object) -> str:
        return self._information

    def class_maps(self, batch: Bytes) -> Bytes:
        return self.draws(batch) if self.draws else expected(batch, self._margin)


class FakeContext:
    """What a captured graph holds of a context is gone once that is given another shape, as TensorRT says."""

    profiler: Any = None
    enqueue_emits_profile = True

    def __init__(self, network: FakeNetwork, how: object) -> None:
        self.how = how
        self.engine = network
        self.memory: tuple[int, int] | None = None
        self._network = network
        self._shape: tuple[int, ...] = ()
        self._at: dict[str, int] = {}
        self._changes = 0

    def report_to_profiler(self) -> bool:
        """Tell what the network says of its layers, once the last call has ended."""
        assert not self.enqueue_emits_profile
        assert not any(step.kind == "network" for stream in self._network.cuda.streams for step in stream.steps)
        for name, ms in self._network.layers.items():
            self.profiler.report_layer_time(name, ms)
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        self.memory = address, size

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "images"
        self._changes += shape != self._shape
        self._shape = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._changes += self._at.get(name) != address
        self._at[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        network = self._network
        answer = network.answers.popleft() if network.answers else True
        if isinstance(answer, Exception):
            raise answer
        into = network.cuda.stream_at(stream)
        captured = None if into.captured is None else self._changes
        shape, images, class_map = self._shape, self._at["images"], self._at["class_map"]

        def compute() -> None:
            assert captured in {None, self._changes}, "a graph is launched whose context has changed"
            batch = network.cuda.at(images)[: int(np.prod(shape))].reshape(shape)
            class_maps = network.class_maps(batch).reshape(-1)
            network.cuda.at(class_map)[: class_maps.size] = class_maps

        if answer:
            network.cuda.put(into, Step("network", compute))
        return answer
