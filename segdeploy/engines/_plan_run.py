"""Runs a plan: memory for two batches, streams of their own for copies and computation, and CUDA graphs."""

import dataclasses
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from segdeploy.engines._base import ClassMaps, Engine, Images
from segdeploy.engines._cuda import Cuda
from segdeploy.engines._layers import WARMUP
from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.spec import Precision, Spec

SLOTS = 2
CAPTURED_RUN = 2  # of a batch size in a slot: the first has shown that it comes
MOST_GRAPHS = 8  # batch sizes; each graph holds device memory


class _Pending:
    """A batch that was submitted; `result` holds its class maps once another batch needed its memory."""

    def __init__(self, slot: "_Slot", count: int) -> None:
        self.slot = slot
        self.count = count
        self.result: ClassMaps | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class _Kept:
    """A captured network, and the context whose state it holds."""

    graph: Any
    context: Any


class _Slot:
    """The memory of one batch in flight, on both sides, and the events that order its three steps."""

    def __init__(self, cuda: Cuda, images: tuple[int, ...], class_maps: tuple[int, ...]) -> None:
        sizes = int(np.prod(images)), int(np.prod(class_maps))
        self.images = cuda.pinned(sizes[0]).reshape(images)
        self.class_maps = cuda.pinned(sizes[1]).reshape(class_maps)
        self.images_at, self.class_maps_at = (cuda.allocate(size) for size in sizes)
        self.arrived, self.computed, self.returned = cuda.event(), cuda.event(), cuda.event()
        self.graphs: dict[int, _Kept | None] = {}  # None: it cannot be captured
        self.runs: dict[int, int] = {}
        self.pending: _Pending | None = None


class PlanEngine(Engine):
    """TensorRT and TensorRT-RTX. Two threads that call `classify` at once overlap; more wait their turn.

    All memory of batches is taken here, at the start. `new_context` gives an execution context of the plan; with
    `captures`, a batch size that comes again is launched as a CUDA graph from its third time on, each graph with a
    context of its own: TensorRT changes what a graph holds when its context is given another shape.
    """

    runtime: ClassVar[str]
    in_flight = SLOTS

    def __init__(
        self,
        new_context: Callable[[], Any],
        cuda: Cuda,
        spec: Spec,
        *,
        runtime: str,
        max_batch: int,
        delivered: Precision | None,
        captures: bool,
    ) -> None:
        super().__init__(spec, device="cuda", delivered=delivered)
        self.runtime = runtime  # type: ignore[misc] # one class serves two runtimes
        self.max_batch = max_batch
        self._new_context, self._captures, self._cuda = new_context, captures, cuda
        self._turn = threading.Condition()
        with cuda.active():
            self._context = new_context()
            if self._context is None:
                raise InvalidFileError(f"{runtime} cannot run {spec.name}.", "Free device memory, or build it again.")
            self._upload, self._compute, self._download = cuda.stream(), cuda.stream(), cuda.stream()
            self._began, self._ended = cuda.event(), cuda.event()
            images = (max_batch, spec.height, spec.width, 3)
            class_maps = (max_batch, *(side - 2 * spec.margin for side in images[1:3]))
            self._free = deque(_Slot(cuda, images, class_maps) for _ in range(SLOTS))
        self._busy: deque[_Slot] = deque()

    def _require_fits(self, batch: Images) -> None:
        if len(batch) > self.max_batch:
            raise InvalidRequestError(
                f"this engine takes at most {self.max_batch} images at once, not {len(batch)}.",
                f"Build it again with --max-batch {len(batch)}.",
            )

    def _submit(self, batch: Images) -> _Pending:
        self._require_fits(batch)
        with self._turn, self._cuda.active():
            slot = self._next_slot()
            try:
                slot.pending = _Pending(slot, len(batch))
                np.copyto(slot.images[: len(batch)], batch)
                self._start(slot, len(batch))
            except BaseException:
                self._give_back(slot)
                raise
            self._busy.append(slot)
            self._turn.notify()  # whoever waits may take it over
            return slot.pending

    def _next_slot(self) -> _Slot:
        while not self._free and not self._busy and not self._closed:
            self._turn.wait()
        self._require_open()
        if self._free:
            return self._free.popleft()
        slot = self._busy[0]
        if slot.pending is not None:
            slot.pending.result = self._returned(slot, slot.pending.count).copy()
        return self._busy.popleft()

    def _give_back(self, slot: _Slot) -> None:
        slot.pending = None
        self._free.append(slot)
        self._turn.notify_all()

    def _start(self, slot: _Slot, count: int) -> None:
        cuda = self._cuda
        cuda.to_device(slot.images_at, slot.images[:count].reshape(-1), self._upload)
        cuda.record(slot.arrived, self._upload)
        cuda.wait(self._compute, slot.arrived)
        self._launch(slot, count)
        cuda.record(slot.computed, self._compute)
        cuda.wait(self._download, slot.computed)
        cuda.to_host(slot.class_maps[:count].reshape(-1), slot.class_maps_at, self._download)
        cuda.record(slot.returned, self._download)

    def _launch(self, slot: _Slot, count: int) -> None:
        """Put the network into the compute stream; its second run of a size is captured after it has run as it is."""
        if (kept := slot.graphs.get(count)) is not None:
            self._cuda.launch(kept.graph, self._compute)
            return
        slot.runs[count] = slot.runs.get(count, 0) + 1
        capturing = self._captures and slot.runs[count] == CAPTURED_RUN and len(slot.graphs) < MOST_GRAPHS
        context = (self._new_context() if capturing else None) or self._context
        self._prepare(context, slot, count)
        if not self._enqueue(context):
            raise InvalidFileError(f"{self.runtime} failed on a batch of {count}.", "Build the engine again.")
        if context is not self._context:
            graph = self._cuda.capture(self._compute, lambda: self._enqueue(context))
            slot.graphs[count] = None if graph is None else _Kept(graph, context)

    def _prepare(self, context: Any, slot: _Slot, count: int) -> None:  # noqa: ANN401 - TensorRT's
        taken = [
            context.set_input_shape("images", (count, *slot.images.shape[1:])),
            context.set_tensor_address("images", slot.images_at),
            context.set_tensor_address(self.spec.output, slot.class_maps_at),
        ]
        if not all(taken):
            raise InvalidFileError(f"{self.runtime} does not take a batch of {count}.", "Build the engine again.")

    def _enqueue(self, context: Any) -> bool:  # noqa: ANN401 - TensorRT's
        return bool(context.execute_async_v3(self._cuda.address_of(self._compute)))

    def _returned(self, slot: _Slot, count: int) -> NDArray[np.uint8]:
        self._cuda.synchronize(slot.returned)
        return slot.class_maps[:count]

    def _collect(self, pending: Any, out: ClassMaps | None) -> ClassMaps:  # noqa: ANN401
        with self._turn:
            self._require_open()
            if pending.result is not None:
                return super()._collect(pending.result, out)
            self._busy.remove(pending.slot)  # ours alone now, so that others may go on while we wait
        try:
            with self._cuda.active():
                returned = self._returned(pending.slot, pending.count)
                return super()._collect(returned.copy() if out is None else returned, out)
        finally:
            with self._turn:
                self._give_back(pending.slot)

    def device_ms(self, batch: Images, *, runs: int) -> list[float]:
        """By events around the network alone, its input already on the device."""
        for _ in range(SLOTS * 2):
            self.classify(batch)  # each slot has run this size, and has its graph
        found = []
        with self._turn, self._cuda.active():
            slot = self._next_slot()
            try:
                for _ in range(runs):
                    self._cuda.record(self._began, self._compute)
                    self._launch(slot, len(batch))
                    self._cuda.record(self._ended, self._compute)
                    self._cuda.synchronize(self._ended)
                    found.append(self._cuda.elapsed_ms(self._began, self._ended))
            finally:
                self._give_back(slot)
        return found

    def profiled(self, batch: Images, profiler: Any, *, runs: int) -> Any:  # noqa: ANN401 - TensorRT's
        """Tell a profiler of `runs` calls, each as it is and not as a graph; gives the context that ran them."""
        self._require_fits(batch)
        with self._turn, self._cuda.active():
            slot, context = self._next_slot(), self._new_context()
            try:
                self._prepare(context, slot, len(batch))
                context.profiler, context.enqueue_emits_profile = profiler, False
                np.copyto(slot.images[: len(batch)], batch)
                self._cuda.to_device(slot.images_at, slot.images[: len(batch)].reshape(-1), self._compute)
                for run in range(WARMUP + runs):
                    if not self._enqueue(context):
                        raise InvalidFileError(f"{self.runtime} failed on a batch of {len(batch)}.", "Build it again.")
                    self._cuda.record(self._ended, self._compute)
                    self._cuda.synchronize(self._ended)
                    if run >= WARMUP:
                        context.report_to_profiler()
            finally:
                self._give_back(slot)
        return context

    def _release(self) -> None:
        with self._turn, self._cuda.active():
            self._turn.notify_all()  # who waits for a slot hears that there will be none
            while len(self._free) + len(self._busy) < SLOTS:
                self._turn.wait()  # another thread is collecting
            try:
                for stream in (self._upload, self._compute, self._download):  # also what was begun and failed
                    self._cuda.record(self._ended, stream)
                    self._cuda.synchronize(self._ended)
            finally:
                self._busy.clear()
                self._free.clear()
                del self._context, self._new_context  # before the memory and the streams they use
                self._cuda.close()
