"""Work on many files at once."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from segdeploy import cores

T = TypeVar("T")
Item = TypeVar("Item")


def each(work: Callable[[Item], T], files: Sequence[Item]) -> Iterator[tuple[Item, T]]:
    """Every file with what `work` gives, in their order, on a thread for each core; nothing goes on after an error."""
    pool = ThreadPoolExecutor(cores.usable())
    try:
        yield from zip(files, pool.map(work, files), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)
