"""What may be said of a foreign graph, and what adopting it gives."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from segdeploy.artifact import Artifact
from segdeploy.data.dataset import DataFolder
from segdeploy.errors import InvalidRequestError
from segdeploy.paths import hold_paths
from segdeploy.spec import Fit

if TYPE_CHECKING:
    from segdeploy.proof.conventions import Table


@dataclasses.dataclass(frozen=True, slots=True)
class AdoptOptions:
    """What a network does not say of itself; None is read from its file, from files beside it, or found.

    `weights`: of `package.module:build`, the file that holds the weights.

    `size`: (height, width) of its input. `fit` and `overlap`: how images of another size meet it, as in `Spec`; None
    takes `letterbox` where labelled images say so, else `stretch`. `classes`: their names, how many there are, or a
    file (`classes.csv`, or a name a line). `class_values`: of a class map, the value of each class where those are no
    indices.

    `preset`: `imagenet`, `0..1`, `-1..1` or `0..255`; else `scale`, `mean` and `deviation`: the network is given
    (pixel x scale - mean) / deviation, each of one value or one a channel in the order of `channels` (`rgb`, `bgr`).
    `output_name`: of several outputs. `threshold`: of one sigmoid channel, or of several, the probability above
    which a pixel is of its class.

    `data`: images that prove; labelled ones find the preprocessing where nothing says it, and `force` lets warnings
    about the labels pass. `calibrate`: images without labels. `overwrite` replaces a graph that was adopted under that
    name. `allow_inconclusive` lets a proof count that could not have failed. `proof_kit`: as `ExportOptions` has it.
    """

    weights: Path | None = None
    size: tuple[int, int] | None = None
    fit: Fit | None = None
    overlap: int | None = None
    classes: Sequence[str] | str | int | None = None
    class_values: Sequence[int] = ()
    preset: str | None = None
    scale: float | None = None
    mean: Sequence[float] = ()
    deviation: Sequence[float] = ()
    channels: Literal["rgb", "bgr"] | None = None
    output_name: str | None = None
    threshold: float = 0.5
    data: DataFolder | Path | None = None
    calibrate: Path | None = None
    force: bool = False
    overwrite: bool = False
    allow_inconclusive: bool = False
    proof_kit: bool = True

    def __post_init__(self) -> None:
        hold_paths(self, "weights", "data", "calibrate")
        if not 0 < self.threshold < 1:
            raise InvalidRequestError(f"the threshold is {self.threshold}, not a probability.", "Give one in 0..1.")
        if self.preset is not None and (self.scale is not None or self.mean or self.deviation):
            raise InvalidRequestError("a preset has scale, mean and deviation of its own.", "Give one or the other.")


ADOPT = AdoptOptions()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Adopted:
    """An adopted graph: `source` says where its preprocessing is from, `notes` what is worth knowing.

    `table`: how every customary preprocessing did, where labelled images decided.
    """

    graph: Artifact
    source: str
    notes: tuple[str, ...] = ()
    table: "Table | None" = None


class UndecidedError(InvalidRequestError):
    """Labelled images do not tell the customary preprocessings apart; `table` says how each did."""

    def __init__(self, what: str, remedy: str, table: "Table | None" = None) -> None:
        super().__init__(what, remedy)
        self.table = table
