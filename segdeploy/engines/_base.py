"""The life cycle of every engine: public methods check, private ones do the work."""

import abc
import dataclasses
import importlib.metadata
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from segdeploy import fitting, images
from segdeploy.arithmetic import instruction_set
from segdeploy.artifact import Artifact, Kind
from segdeploy.engines._layers import NodeTime
from segdeploy.errors import InvalidRequestError
from segdeploy.progress import Progress, silent
from segdeploy.spec import Precision, Spec
from segdeploy.target import BuildOptions, Target

Images = NDArray[np.uint8]
ClassMaps = NDArray[np.uint8]
ENOUGH = 0.9  # of the low-precision work that a graph asks for: an engine that does as much is said to deliver it

Hint = Literal["latency", "throughput"]


@dataclasses.dataclass(frozen=True, slots=True)
class RunOptions:
    """How an engine runs; each runtime takes what it knows of it.

    `threads`: of one call; None leaves all cores to it. `hint`: one image soon, or many at once. `cuda`: the package
    that reaches the GPU, `cuda-bindings` or `pycuda`; None takes the one that is installed. `cuda_graphs`: launch a
    whole network at once where that can be done.
    """

    threads: int | None = None
    hint: Hint = "latency"
    cuda: str | None = None
    cuda_graphs: bool = True


RUN, BUILD = RunOptions(), BuildOptions()


@dataclasses.dataclass(slots=True)
class Ticket:
    """A batch that was handed in and not collected yet."""

    engine: "Engine"
    count: int
    pending: Any
    collected: bool = False


class Engine(abc.ABC):
    """A network that is loaded and ready; a context manager.

    `delivered` is the type the layers are really computed in, None where nobody can tell; `concurrent` is the
    module's `CONCURRENT`; `in_flight` is how many batches keep it busy. `finite`: whether all logits of the last call
    were, as far as this engine looks at them. `alone`: the graph takes one image, so a batch is run image by image.
    """

    runtime: ClassVar[str]
    concurrent: ClassVar[bool] = False
    in_flight: int = 1
    finite: bool = True
    alone: bool = False

    def __init__(self, spec: Spec, *, device: str, delivered: Precision | None) -> None:
        self.spec = spec
        self.device = device
        self.delivered = delivered
        self._closed = False

    def classify(self, batch: Images, out: ClassMaps | None = None) -> ClassMaps:
        """uint8 RGB (N, H, W, 3) at network size -> class maps (N, H', W'), into `out` where it is given."""
        return self.collect(self.submit(batch), out)

    def submit(self, batch: Images) -> Ticket:
        """Start on a batch, as `classify` takes it; what it held may be overwritten at once.

        An engine without streams runs it at once.
        """
        self._require_open()
        expected = (self.spec.height, self.spec.width, 3)
        is_array = isinstance(batch, np.ndarray)
        if not is_array or batch.dtype != np.uint8 or batch.shape[1:] != expected or not len(batch):
            given = f"{batch.dtype} {batch.shape}" if is_array else type(batch).__name__
            raise InvalidRequestError(
                f"the images are {given}; this engine takes uint8 (N, {str(expected)[1:]}, N >= 1.",
                "Resize with segdeploy.fitting.prepared, or export with --size.",
            )
        held = np.ascontiguousarray(batch)
        return Ticket(self, len(batch), self._one_by_one(held) if self.alone else self._submit(held))

    def _one_by_one(self, batch: Images) -> list[Any]:
        pending, finite = [], True
        for image in batch:
            pending.append(self._submit(image[None]))
            finite &= self.finite
        self.finite = finite
        return pending

    def collect(self, ticket: Ticket, out: ClassMaps | None = None) -> ClassMaps:
        """The class maps (N, H', W') of a batch that was submitted here, into `out` where it is given."""
        self._require_open()
        if ticket.engine is not self or ticket.collected:
            raise InvalidRequestError(
                "this ticket is not of this engine, or was collected.", "Collect what `submit` gave, once."
            )
        self._require_room(ticket, out)
        ticket.collected = True
        if not self.alone:
            return self._collect(ticket.pending, out)
        drawn = np.empty(self._shape_of(ticket), np.uint8) if out is None else out
        for index, pending in enumerate(ticket.pending):
            self._collect(pending, drawn[index : index + 1])
        return drawn

    def device_ms(self, batch: Images, *, runs: int) -> list[float] | None:  # noqa: ARG002 - most have no such clock
        """Milliseconds of each of `runs` computations on the device, without copies; None: this runtime cannot say."""
        return None

    def _shape_of(self, ticket: Ticket) -> tuple[int, int, int]:
        inside = 2 * self.spec.margin
        return ticket.count, self.spec.height - inside, self.spec.width - inside

    def _require_room(self, ticket: Ticket, out: ClassMaps | None) -> None:
        expected = self._shape_of(ticket)
        if out is not None and (out.dtype != np.uint8 or out.shape != expected):
            raise InvalidRequestError(
                f"`out` is {out.dtype} {out.shape}; the class maps are uint8 {expected}.",
                "Give an array of that shape.",
            )

    def _require_open(self) -> None:
        if self._closed:
            raise InvalidRequestError("this engine is closed.", "Open another, and use it inside its `with` block.")

    def segment(self, photo: images.Photo) -> NDArray[np.uint8]:
        """A photograph of any size -> class map (H0, W0): fitted as the Spec says, through the network, and back.

        `photo`: a path, a Pillow image, or uint8 RGB (H0, W0, 3). Raise InvalidRequestError for anything else.
        """
        pixels = images.to_rgb(photo)
        class_map = fitting.drawn(pixels, self.spec, self.classify)
        return images.to_photo_size(class_map, height=pixels.shape[0], width=pixels.shape[1])

    @abc.abstractmethod
    def _submit(self, batch: Images) -> Any: ...  # noqa: ANN401 - whatever `_collect` needs; the class maps, at best

    def _collect(self, pending: Any, out: ClassMaps | None) -> ClassMaps:  # noqa: ANN401 - what `_submit` gave
        if out is None:
            class_maps: ClassMaps = pending
            return class_maps
        np.copyto(out, pending)
        return out

    @abc.abstractmethod
    def _release(self) -> None: ...

    def close(self) -> None:
        """Let go of the network; called by leaving the `with` block. Closing twice does no harm."""
        if not self._closed:
            self._closed = True
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class EngineModule(Protocol):
    """What a file in `engines/` defines."""

    RUNTIME: str
    OPENS: Kind
    PACKAGES: tuple[str, ...]  # distributions that bring the runtime; more than one installed is a clash
    DEVICES: tuple[str, ...]
    CONCURRENT: bool  # one engine serves several threads at once, and gains from it
    FORM: str | None  # how an int8 graph is spelled for this runtime

    def open(self, artifact: Artifact, *, device: str, options: RunOptions = RUN) -> Engine: ...
    def import_runtime(self) -> ModuleType: ...
    def devices(self) -> list[str]: ...


class GraphModule(EngineModule, Protocol):
    """What a file in `engines/` defines besides where its runtime opens graphs."""

    def low_precision_layers(self, artifact: Artifact, *, device: str) -> dict[str, Precision]: ...
    def tensors(self, graph: bytes, batch: Images, *, device: str) -> dict[str, NDArray[Any]]: ...


class ProfilingModule(EngineModule, Protocol):
    """What a file in `engines/` may define where its runtime takes the time of each of its nodes."""

    def layer_ms(
        self, artifact: Artifact, *, device: str, images: Images, runs: int, options: RunOptions = RUN
    ) -> list[NodeTime] | None: ...


class CompilingModule(EngineModule, Protocol):
    """What a file in `engines/` defines besides where its runtime opens plans."""

    def compile(
        self, graph: Artifact, folder: Path, options: BuildOptions = BUILD, *, progress: Progress = silent
    ) -> Artifact: ...
    def target(self, options: BuildOptions = BUILD) -> Target: ...


def installed(packages: tuple[str, ...]) -> list[str]:
    """Which of the distributions that bring a runtime are installed; two of them overwrite each other."""
    distributions = (found for found in importlib.metadata.distributions() if found.name)
    found = {distribution.name.lower().replace("_", "-") for distribution in distributions}
    return [package for package in packages if package in found]


@dataclasses.dataclass(frozen=True, slots=True)
class Arithmetic:
    """What an engine computes with: the version of its runtime, and the processor's instruction set or the GPU."""

    runtime_version: str
    hardware: str


def arithmetic(module: EngineModule, device: str) -> Arithmetic:
    """What an engine of that runtime computes with here."""
    found = installed(module.PACKAGES)
    version = importlib.metadata.version(found[0]) if found else "unknown"
    if device == "cpu":
        return Arithmetic(version, instruction_set())
    from segdeploy.engines import _cuda

    return Arithmetic(version, _cuda.gpu_here().name)


def on_cpu(asked: Precision) -> Precision:
    """What a runtime delivers on a CPU: int8 where that was asked for; all other graphs are computed in float32."""
    return asked if asked is Precision.INT8 else Precision.FP32


def unknown_device(runtime: str, device: str, known: Any) -> InvalidRequestError:  # noqa: ANN401 - any sequence
    return InvalidRequestError(f"{runtime} has no device {device!r}.", f"Choose one of {', '.join(known)}.")
