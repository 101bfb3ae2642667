"""One life cycle for every runtime: a public check, then a private act."""

import abc
import importlib.metadata
from types import ModuleType, TracebackType
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from segdeploy import images
from segdeploy.artifact import Artifact, Kind
from segdeploy.errors import InvalidRequestError, MissingRuntimeError
from segdeploy.spec import Precision, Spec

Images = NDArray[np.uint8]
ClassMaps = NDArray[np.uint8]


class Engine(abc.ABC):
    """A network that is loaded and ready; a context manager.

    `delivered` is the type the convolutions are really computed in; `concurrent` is the module's `CONCURRENT`.
    """

    runtime: ClassVar[str]
    concurrent: ClassVar[bool] = False

    def __init__(self, spec: Spec, *, device: str, delivered: Precision) -> None:
        self.spec = spec
        self.device = device
        self.delivered = delivered
        self._closed = False

    def classify(self, batch: Images, out: ClassMaps | None = None) -> ClassMaps:
        """uint8 RGB (N, H, W, 3) at network size -> class maps (N, H', W'), into `out` where it is given."""
        if self._closed:
            raise InvalidRequestError("this engine is closed.", "Open another, and use it inside its `with` block.")
        expected = (self.spec.height, self.spec.width, 3)
        if batch.dtype != np.uint8 or batch.ndim != len(expected) + 1 or batch.shape[1:] != expected:
            raise InvalidRequestError(
                f"the images are {batch.dtype} {batch.shape}; this engine takes uint8 (N, {str(expected)[1:]}.",
                "Resize with segdeploy.images.prepared, or export with --size.",
            )
        class_maps = self._classify(np.ascontiguousarray(batch))
        if out is None:
            return class_maps
        np.copyto(out, class_maps)
        return out

    def segment(self, photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """RGB (H0, W0, 3) of any size -> class map (H0, W0): to network size, through the network, and back."""
        class_map = self.classify(images.prepared(photo, self.spec)[None])[0]
        return images.to_photo_size(class_map, height=photo.shape[0], width=photo.shape[1])

    @abc.abstractmethod
    def _classify(self, batch: Images) -> ClassMaps: ...

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
    FORM: str | None  # how an int8 graph must be spelled for this runtime to compute it exactly

    def open(self, artifact: Artifact, *, device: str, threads: int | None = None) -> Engine: ...
    def narrow_convolutions(self, artifact: Artifact, *, device: str) -> dict[str, Precision]: ...
    def import_runtime(self) -> ModuleType: ...
    def devices(self) -> list[str]: ...


def installed(packages: tuple[str, ...]) -> list[str]:
    """Which of the distributions that bring a runtime are installed; two of them overwrite each other."""
    found = {distribution.name.lower() for distribution in importlib.metadata.distributions() if distribution.name}
    return [package for package in packages if package in found]


def on_cpu(asked: Precision) -> Precision:
    """What a runtime delivers on a CPU: none convolves in half precision, all compute such graphs in float32."""
    return Precision.FP32 if asked is Precision.FP16 else asked


def missing(package: str, extra: str) -> MissingRuntimeError:
    return MissingRuntimeError(
        f"{package} is not installed or does not load.", f"Install it: pip install 'segdeploy[{extra}]'"
    )


def unknown_device(runtime: str, device: str, known: Any) -> InvalidRequestError:  # noqa: ANN401 - any sequence
    return InvalidRequestError(f"{runtime} has no device {device!r}.", f"Choose one of {', '.join(known)}.")
