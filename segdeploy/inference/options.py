"""What a run over a folder does, apart from the engine: which images, what again, and how a photograph is decoded."""

import dataclasses
import hashlib
import re
from typing import Literal

from segdeploy import cores
from segdeploy.errors import InvalidRequestError
from segdeploy.fitting import DECODINGS, Decode
from segdeploy.spec import Fit

_SHARD = re.compile(r"(\d{1,9})/(\d{1,9})")
INDEX, ORIGINAL = "index", "original"


@dataclasses.dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` runs that divide a folder among them, without speaking to one another; counted from 1."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """`2/5` -> the second of five. Raise InvalidRequestError for anything else."""
        found = _SHARD.fullmatch(text)
        index, count = (int(found[1]), int(found[2])) if found else (0, 0)
        if not 1 <= index <= count:
            raise InvalidRequestError(f"{text!r} is no shard.", "Write it as 1/3, 2/3 and 3/3: one of three runs.")
        return cls(index, count)

    @property
    def folder(self) -> str:
        return f"{self.index}-of-{self.count}"

    def has(self, target: str) -> bool:
        """Whether the files of that name are made by this run; the name alone decides, on every machine."""
        digest = hashlib.sha256(target.encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:8]) % self.count == self.index - 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FolderOptions:
    """Which images of a folder are segmented, and how.

    `include` and `exclude`: patterns such as `*.jpg` or `night/*`, held against the name of a file and its path below
    what was named; `exclude` wins. `shard`: `2/5`, or None for all. `limit`: at most so many images are segmented.

    What an earlier run made of the same file with the same engine is left as it is. `again` makes everything;
    `retry_failed` tries the files again that could not be read; `verify` reads every input and output to see whether
    it changed, where otherwise size, inode and times tell. `fail_fast` stops at the first file that fails. `dry_run`
    counts, and writes nothing.

    `fit`: how photographs meet the network, as `Spec.fit` has it; None follows the network's own. `overlap`: of tiles,
    the pixels on each side on which a neighbour decides.

    `workers`: images at work at once, each on a thread; None takes one for each core that this process may use.

    `ray`: actors of Ray make the images, `local` on this machine, else those of the cluster at that address, which see
    the same files under the same names; `ray_actors` of them, by default one for each GPU or core.

    `decode`: `exact` decodes every pixel; `scaled` decodes large JPEGs at a half, a quarter or an eighth, with at
    least four times the pixels a side that the network takes.

    `opacity`, 0 to 1, is that of the colours in overlays. `values`: what masks and class maps (npy) hold for a class,
    its `index`, or the `original` value, which it has in the masks of its data set, such as Cityscapes' label ids.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    shard: str | None = None
    limit: int | None = None
    again: bool = False
    retry_failed: bool = False
    verify: bool = False
    fail_fast: bool = False
    dry_run: bool = False
    workers: int | None = None
    ray: str | None = None
    ray_actors: int | None = None
    fit: Fit | None = None
    overlap: int | None = None
    decode: Decode = "exact"
    opacity: float = 0.5
    values: Literal["index", "original"] = "index"

    def __post_init__(self) -> None:
        if self.shard is not None:
            Shard.parse(self.shard)
        if self.limit is not None and self.limit < 1:
            raise InvalidRequestError(f"a limit of {self.limit} images leaves none.", "Give 1 or more.")
        if self.ray_actors is not None and (self.ray is None or self.ray_actors < 1):
            raise InvalidRequestError(
                f"{self.ray_actors} actors of Ray were asked for, and no Ray."
                if self.ray is None
                else f"{self.ray_actors} actors of Ray make nothing.",
                "Give --ray local, or the address of a cluster, and 1 actor or more.",
            )
        if self.workers is not None and (self.workers < 1 or self.ray is not None):
            raise InvalidRequestError(
                f"{self.workers} workers make nothing." if self.ray is None else "Ray's actors have their own workers.",
                "Give --workers 1 or more." if self.ray is None else "Give --ray-actors in place of --workers.",
            )
        if self.decode not in DECODINGS:
            raise InvalidRequestError(f"there is no decoding {self.decode!r}.", f"Choose {' or '.join(DECODINGS)}.")
        if not 0 <= self.opacity <= 1:
            raise InvalidRequestError(f"an opacity of {self.opacity} cannot be.", "Give a number from 0 to 1.")
        if self.values not in {INDEX, ORIGINAL}:
            raise InvalidRequestError(f"there are no values {self.values!r}.", f"Choose {INDEX} or {ORIGINAL}.")

    @property
    def at_once(self) -> int:
        """Images at work at once."""
        return self.workers or cores.usable()

    @property
    def part(self) -> Shard:
        """The shard; without one, all there is."""
        return Shard(1, 1) if self.shard is None else Shard.parse(self.shard)


FOLDER = FolderOptions()
