"""Progress of long work: a title and a number of steps, and a call for each step that is done."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

Progress = Callable[[str, int], AbstractContextManager[Callable[[], None]]]


@contextlib.contextmanager
def silent(_title: str, _total: int) -> Iterator[Callable[[], None]]:
    """A `Progress` that shows nothing; the command line hands in progress bars."""
    yield lambda: None
