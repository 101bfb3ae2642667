"""What a file was made from, each part by its sha256."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Self

from segdeploy import typed_json
from segdeploy.certificate import WeightsKind

ForeignKind = Literal["ONNX", "torch.export", "TorchScript"]
_RARE = ("imported", "foreign")  # parts that stand in a file only where there are some


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WeightsOrigin:
    """The checkpoint; `path` is relative to the folder of the file, of packaged weights the name; None in a plan."""

    kind: WeightsKind
    sha256: str
    path: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GraphOrigin:
    """The graph that another graph or a plan was made from; `path` is relative to the folder of that file."""

    path: str
    sha256: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Where the ranges of the activations come from: `method` is how they were clipped.

    `images` and `cache`: file name to sha256. `skipped`: images that could not be read, and why.
    """

    method: str
    images: Mapping[str, str] = dataclasses.field(default_factory=dict)
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cache: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ValidationPicture:
    """An image and its mask; the paths are relative to the folder of the checkpoint."""

    image: str
    image_sha256: str
    mask: str
    mask_sha256: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ValidationFolder:
    """The labelled folder of remembered images; the path is relative to the folder of the file that remembers it."""

    path: str
    layout: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOrigin:
    """The epoch that a checkpoint is of, its score on the validation images (mIoU in 0..1), and how it was trained.

    `best`: the best score so far, in the checkpoint that training resumes from. `plan`: the options, as JSON.
    `validation`: some of the validation images, evenly spread; what the network becomes is proven on them. `folder`:
    where they lie, if only its layout tells how the masks are read; None where they are index masks.
    """

    epoch: int
    val_miou: float | None
    plan: Mapping[str, Any]
    best: float | None = None
    validation: tuple[ValidationPicture, ...] = ()
    folder: ValidationFolder | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImportOrigin:
    """The foreign checkpoint that one of ours was made from, whose it is, and how many tensors became what."""

    file: str
    sha256: str
    family: str
    taken: int
    renamed: int
    missing: int
    left_over: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """What a network is given for a pixel of 0..255: (pixel x scale - mean) / deviation.

    `mean` and `deviation` have one value for each channel, in the order of `channels`; a grey pixel is Pillow's `L`.
    `stretched`: before that, each image's least and largest value become 0 and 255.
    """

    scale: float
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    channels: Literal["rgb", "bgr", "grey"] = "rgb"
    stretched: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GraphReading:
    """How a graph that somebody else trained takes an image, and how its output is read.

    `layout` and `axes` name the axes of the input `input` and of the output `output` in their order: N images, C or K
    channels, H rows, W columns. `kind`: "scores" are K numbers for a pixel of which the largest wins, the first one of
    equals; "one channel" is class 1 above `threshold`; "several channels" are classes 1 to K, the largest that is above
    `threshold`, and class 0 where none is; a "class map" holds `values[index]` where the class is `index`.
    """

    input: str
    layout: str
    dtype: Literal["float32", "float16", "float64", "uint8"]
    preprocessing: Preprocessing
    output: str
    axes: str
    kind: Literal["scores", "one channel", "several channels", "class map"]
    threshold: float | None = None
    values: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProofPicture:
    """An image, and its mask where it has one; the paths are relative to the folder of the graph."""

    image: str
    image_sha256: str
    mask: str | None = None
    mask_sha256: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModuleSource:
    """What a torch module was built from: `named` as the user said it, and its weights, where it has files of them.

    `path`: of the file of weights or of the folder, relative to the folder of the graph; None in a plan.
    """

    named: str
    path: str | None = None
    sha256: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ForeignOrigin:
    """The file of somebody else; `path` is relative to the folder of the graph, None in a plan.

    `kind`: what runs it. `sha256`: of the file; of an ONNX file, with the external data that it reads. `built_from`: of
    a torch module, whose program of torch.export was then kept as that file.

    `pictures`: what the graph was adopted with; what it becomes is proven on them. `folder`: where their masks are read
    by its layout. `notes`: what adopting it had to say, such as what stretching images costs it.
    """

    kind: ForeignKind
    path: str | None
    sha256: str
    reading: GraphReading
    notes: tuple[str, ...] = ()
    pictures: tuple[ProofPicture, ...] = ()
    folder: ValidationFolder | None = None
    built_from: ModuleSource | None = None

    @property
    def without_paths(self) -> Self:
        """As it stands in a plan, which may lie anywhere."""
        source = None if self.built_from is None else dataclasses.replace(self.built_from, path=None)
        return dataclasses.replace(self, path=None, pictures=(), built_from=source)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a file was made from and by. Each part is None where it has none: a foreign graph has no weights of ours.

    `opset` and `torch`: of the exporter. `training`: of a checkpoint that training wrote; `imported`: of one that
    somebody else wrote. `foreign`: of an adopted graph.
    """

    command: str
    version: str
    weights: WeightsOrigin | None = None
    graph: GraphOrigin | None = None
    calibration: Calibration | None = None
    opset: int | None = None
    torch: str | None = None
    training: TrainingOrigin | None = None
    imported: ImportOrigin | None = None
    foreign: ForeignOrigin | None = None

    @classmethod
    def from_dict(cls, fields: object, *, where: str, remedy: str) -> Self:
        """Raise InvalidFileError, naming `where` and the field, for anything but an Origin."""
        full = {**dict.fromkeys(_RARE), **fields} if isinstance(fields, dict) else fields
        return typed_json.convert(full, cls, where=where, remedy=remedy)

    def to_dict(self) -> dict[str, Any]:
        """The JSON value that stands in files; `imported` and `foreign` are in it only where there is one."""
        return {key: value for key, value in typed_json.to_builtins(self).items() if key not in _RARE or value}

    @property
    def network_sha256(self) -> str | None:
        """Of the file that holds the network: our checkpoint, or the file of somebody else."""
        if self.foreign is not None:
            return self.foreign.sha256
        return None if self.weights is None else self.weights.sha256
