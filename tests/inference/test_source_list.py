"""The list of a run's images: it gives back what was put in, and takes little more than the names."""

import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segdeploy.inference.source_list import Source, SourceList

NAMES = st.binary(min_size=1, max_size=20).filter(lambda name: b"\0" not in name).map(os.fsdecode)
SOURCES = st.lists(st.builds(Source, st.sampled_from(["photos", "/other", ""]), NAMES), max_size=30)


@given(sources=SOURCES)
def test_it_gives_back_what_was_put_in(sources: list[Source]) -> None:
    held = SourceList(sources)
    assert len(held) == len(sources)
    assert list(held) == sources
    assert [held[index - len(sources)] for index in range(len(sources))] == sources
    assert list(held[1:-1]) == sources[1:-1]
    assert held == SourceList(sources)
    with pytest.raises(IndexError):
        held[len(sources)]


def test_it_takes_little_more_than_the_names() -> None:
    held = SourceList(Source("photos", f"folder/{number:06}.jpg") for number in range(10_000))
    taken = sum(sys.getsizeof(value) for value in vars(held).values())
    assert taken < 60 * 10_000
