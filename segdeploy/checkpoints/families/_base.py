"""What a family of checkpoints says of a file."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from segdeploy.checkpoints.reading import Stored
from segdeploy.checkpoints.unwrapping import Weights
from segdeploy.palettes import Colour
from segdeploy.spec import IMAGENET_MEAN, IMAGENET_STD

Triple = tuple[float, float, float]


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """A tensor of ours that is made of tensors of the file: which, and how, from float64 arrays in their order."""

    sources: tuple[str, ...]
    make: Callable[..., NDArray[Any]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a file is: which network of ours, how it is built, and where its tensors come from.

    `fits`: the network, or, of a bare encoder, each network that can begin with it. `modules`: a module of ours to the
    file's module whose tensors have the same names; `changes`: tensors of ours that are made otherwise. `count`: the
    channels of the logits. `assumed`: the conventions that neither keys nor shapes tell, as options of the network, set
    as the family publishes them. `mean` and `std` are of RGB in 0..1; `size`: (height, width) that the family is
    customarily run at. `classes` and `colours` are those that the file names. `unused`: how the keys begin that the
    network does without.
    """

    fits: tuple[str, ...]
    variant: Mapping[str, str | int | float | bool]
    modules: Mapping[str, str]
    count: int = 0
    is_encoder: bool = False
    changes: Mapping[str, Change] = dataclasses.field(default_factory=dict)
    assumed: Mapping[str, str | int | float | bool] = dataclasses.field(default_factory=dict)
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    size: tuple[int, int] = (512, 512)
    classes: Sequence[str] = ()
    colours: Sequence[Colour] = ()
    unused: tuple[str, ...] = ()


class Family(Protocol):
    """What a file in `families/` defines. Families are asked in the order of their names.

    `recognises` looks at names and shapes alone, and is true for no other family's file. `read` may raise
    InvalidFileError for a relative that is none of the four networks, and says what it is.
    """

    TITLE: str

    def recognises(self, tensors: Mapping[str, Stored], /) -> bool: ...

    def read(self, weights: Weights, /) -> Reading: ...


def conv_norm(ours: str, conv: str, norm: str) -> dict[str, str]:
    """The two modules of a `ConvNorm` of ours."""
    return {f"{ours}.conv": conv, f"{ours}.norm": norm}
