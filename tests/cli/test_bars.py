"""Progress bars on a terminal, by the real command."""

import re

import pytest
from command_line import on_a_terminal

COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;\d+)*m")


@pytest.mark.usefixtures("workspace")
def test_a_terminal_has_bars_in_colour() -> None:
    shown = on_a_terminal("bench", "--runs", "2")
    assert "Timing batch 1" in shown
    assert COLOUR.search(shown)


@pytest.mark.usefixtures("workspace")
def test_no_color_is_respected() -> None:
    shown = on_a_terminal("bench", "--runs", "2", NO_COLOR="1")
    assert "Timing batch 1" in shown
    assert COLOUR.search(shown) is None
