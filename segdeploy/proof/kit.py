"""A proof kit: the images a network was proven on and the masks that are right there, in one file beside the graph.

With it any machine proves an engine of that network in seconds, without PyTorch and without the data. It is NumPy's
`.npz`; nothing in it is code.
"""

import dataclasses
import functools
import hashlib
import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from segdeploy import metrics, typed_json
from segdeploy.certificate import Limits
from segdeploy.errors import InvalidFileError
from segdeploy.proof.reference import Mask, Reference
from segdeploy.proof.samples import Sample, Samples
from segdeploy.spec import Spec
from segdeploy.typed_json import Count

SCHEMA: Final = 1
MOST_IMAGES = 32
MOST_BYTES = 2**28  # of a kit, packed and unpacked
AGAIN = "Make it again: segdeploy export writes it beside the graph."


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a kit is of: the network by its Spec and weights, and what an engine of it must keep.

    `inside`: of each image, where in its class map the photograph lies (top, bottom, left, right); none where it is all
    of it. `weights_sha256`: of the checkpoint, None where the graph had none. `selected_among` and
    `inconclusive_allowed`: as in a certificate.
    """

    schema: Literal[1] = SCHEMA
    spec: dict[str, Any]
    weights_sha256: str | None
    precision: str
    limits: Limits
    names: tuple[str, ...]
    has_truth: tuple[bool, ...]
    inside: tuple[tuple[int, int, int, int], ...] = ()
    selected_among: Count = 1
    inconclusive_allowed: bool = False


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Kit:
    """A kit that was read; it is the samples, and `reference()` what they are compared with."""

    header: Header
    spec: Spec
    samples: tuple[Sample, ...]
    class_maps: NDArray[np.uint8]
    near_ties: Mask
    pool_ties: Mask

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def reference(self) -> "KitReference":
        return KitReference(self)


class KitReference:
    """The masks that PyTorch drew when the kit was made."""

    kind: Final = "proof kit"

    def __init__(self, kit: Kit) -> None:
        self.spec = kit.spec
        self._kit = kit

    @functools.cached_property
    def _places(self) -> Mapping[bytes, int]:
        return {_digest(sample.image): index for index, sample in enumerate(self._kit.samples)}

    def class_map(self, image: NDArray[np.uint8], /) -> tuple[metrics.ClassMap, Mask]:
        place = self._places[_digest(image)]
        return self._kit.class_maps[place], self._kit.near_ties[place]

    def pool_ties(self, image: NDArray[np.uint8], /) -> Mask:
        tied: Mask = self._kit.pool_ties[self._places[_digest(image)]]
        return tied


def _digest(image: NDArray[np.uint8]) -> bytes:
    return hashlib.sha256(image.tobytes()).digest()


def path_of(graph: Path) -> Path:
    """`export/unet.fp32.onnx` -> `export/unet.fp32.proof`."""
    return graph.with_suffix(".proof")


def spread(count: int, most: int = MOST_IMAGES) -> list[int]:
    """Which of so many samples are taken: all, or at most so many as a kit holds, evenly spread."""
    return [index * count // min(count, most) for index in range(min(count, most))]


def to_bytes(header: Header, reference: Reference, samples: Samples) -> bytes:
    """The kit of these samples; `names` and `has_truth` of the header are filled in here."""
    wanted = set(spread(len(samples)))
    chosen = [sample for index, sample in enumerate(samples) if index in wanted]
    drawn = [reference.class_map(sample.image) for sample in chosen]
    inside = tuple(_sides(sample, class_map.shape) for sample, (class_map, _) in zip(chosen, drawn, strict=True))
    header = dataclasses.replace(
        header,
        inside=() if len({*inside, (0, drawn[0][0].shape[0], 0, drawn[0][0].shape[1])}) == 1 else inside,
        names=tuple(sample.name for sample in chosen),
        has_truth=tuple(sample.truth is not None for sample in chosen),
    )
    arrays = {
        "header": np.frombuffer(typed_json.to_text(header), np.uint8),
        "images": np.stack([sample.image for sample in chosen]),
        "class_maps": np.stack([class_map for class_map, _ in drawn]),
        "near_ties": np.packbits(np.stack([tied for _, tied in drawn]), axis=-1),
        "pool_ties": np.packbits(np.stack([reference.pool_ties(sample.image) for sample in chosen]), axis=-1),
    }
    truths = {f"truth_{index}": sample.truth for index, sample in enumerate(chosen) if sample.truth is not None}
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays, **truths)
    return file.getvalue()


def _sides(sample: Sample, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    (top, bottom, _), (left, right, _) = (part.indices(side) for part, side in zip(sample.inside, shape, strict=True))
    return top, bottom, left, right


def from_bytes(data: bytes, path: Path) -> Kit:
    """Read a kit. Raise InvalidFileError, naming `path`, for anything else."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            if sum(entry.file_size for entry in packed.infolist()) > MOST_BYTES:
                raise InvalidFileError(f"{path} unpacks to more than {MOST_BYTES:,} bytes.", AGAIN)
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            document = typed_json.parse(arrays["header"].tobytes(), where=str(path), remedy=AGAIN)
            header = typed_json.convert(document, Header, where=str(path), remedy=AGAIN)
            spec = Spec.from_dict(header.spec, where=f"{path}: spec")
            kit = _unpacked(header, spec, arrays)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile) as error:
        raise InvalidFileError(f"{path} is no proof kit: {error}.", AGAIN) from error
    return kit


def _unpacked(header: Header, spec: Spec, arrays: Any) -> Kit:  # noqa: ANN401 - NumPy's lazy file
    count, inside = len(header.names), 2 * spec.margin
    height, width = spec.height - inside, spec.width - inside
    images = _shaped(arrays["images"], (count, spec.height, spec.width, 3))
    class_maps = _shaped(arrays["class_maps"], (count, height, width))
    near, pool = (_bits(arrays[name], (count, height, width)) for name in ("near_ties", "pool_ties"))
    if not count or len(header.has_truth) != count or int(class_maps.max()) >= len(spec.classes):
        raise ValueError("its parts do not fit one another")
    truths = [arrays[f"truth_{index}"] if there else None for index, there in enumerate(header.has_truth)]
    if any(truth is not None and (truth.ndim != 2 or truth.dtype != np.uint8) for truth in truths):  # noqa: PLR2004 - H, W
        raise ValueError("a mask in it is none")
    places = header.inside or ((0, height, 0, width),) * count
    if not all(0 <= top < bottom <= height and 0 <= left < right <= width for top, bottom, left, right in places):
        raise ValueError("a photograph in it lies outside its image")
    where = [(slice(top, bottom), slice(left, right)) for top, bottom, left, right in places]
    samples = tuple(Sample(*each) for each in zip(header.names, images, truths, where, strict=True))
    return Kit(header, spec, samples, class_maps, near, pool)


def _shaped(array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    if array.shape != shape or array.dtype != np.uint8:
        raise ValueError(f"it holds {array.dtype} {array.shape} where uint8 {shape} belongs")
    return array


def _bits(packed: NDArray[Any], shape: tuple[int, ...]) -> Mask:
    rows = _shaped(packed, (*shape[:-1], -(-shape[-1] // 8)))
    return np.unpackbits(rows, axis=-1, count=shape[-1]).astype(bool)
