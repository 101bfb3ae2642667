"""Errors reach whoever can act on them, from another process too."""

import copy
import pickle
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segdeploy import errors
from segdeploy.errors import SegdeployError


def kinds(kind: type[SegdeployError] = SegdeployError) -> Iterator[type[SegdeployError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from kinds(below)


def test_every_kind_is_tested_here() -> None:
    defined = {value for value in vars(errors).values() if isinstance(value, type)}
    assert defined <= set(kinds())
    assert len(defined) >= 5


@pytest.mark.parametrize("kind", list(kinds()))
@given(what=st.text(max_size=20), remedy=st.text(max_size=20))
def test_an_error_is_whole_after_it_was_sent(kind: type[SegdeployError], what: str, remedy: str) -> None:
    """Unpickling calls the class with its `args`: one of two arguments would be a TypeError in place of the reason."""
    error = kind(what, remedy)
    sent = [pickle.loads(pickle.dumps(error, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]  # noqa: S301
    for found in (*sent, copy.copy(error), copy.deepcopy(error)):
        assert type(found) is kind
        assert (found.what, found.remedy, str(found)) == (what, remedy, f"{what}\n{remedy}")
        assert found.exit_code == kind.exit_code
