"""Work on many files at once."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from segdeploy import cores

T = TypeVar("T")


def each(work: Callable[[Path], T], files: Sequence[Path]) -> Iterator[tuple[Path, T]]:
    """Every file with what `work` gives, in their order, on a thread for each core; nothing goes on after an error."""
    pool = ThreadPoolExecutor(cores.usable())
    try:
        yield from zip(files, pool.map(work, files), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)
