"""The images of a run, however many: their paths are held as bytes one behind the other, twenty to forty an image."""

import dataclasses
import os
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import overload


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """One file to segment: where it lies, and its path below what the user named (its mask's path below OUT)."""

    root: str
    relative: str

    @property
    def path(self) -> Path:
        return Path(self.root, self.relative)

    @property
    def stem(self) -> str:
        """`relative` without its ending."""
        return self.relative.removesuffix(PurePath(self.relative).suffix)


class SourceList(Sequence[Source]):
    """Sources in the order in which they were added; each is made where it is asked for."""

    def __init__(self, sources: Iterable[Source] = ()) -> None:
        self._roots: list[str] = []
        self._root_of = array("I")
        self._names = bytearray()
        self._ends = array("Q", [0])
        for source in sources:
            self.append(source)

    def append(self, source: Source) -> None:
        if source.root not in self._roots[-1:]:  # those of one input follow one another
            self._roots.append(source.root)
        self._root_of.append(len(self._roots) - 1)
        self._names += os.fsencode(source.relative)
        self._ends.append(len(self._names))

    def __len__(self) -> int:
        return len(self._root_of)

    @overload
    def __getitem__(self, index: int) -> Source: ...
    @overload
    def __getitem__(self, index: slice) -> "SourceList": ...
    def __getitem__(self, index: int | slice) -> "Source | SourceList":
        if isinstance(index, slice):
            return SourceList(self[place] for place in range(*index.indices(len(self))))
        place = range(len(self))[index]
        name = self._names[self._ends[place] : self._ends[place + 1]]
        return Source(self._roots[self._root_of[place]], os.fsdecode(bytes(name)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SourceList) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # it grows
