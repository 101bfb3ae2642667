"""Facts as lines of text."""

import re
from pathlib import Path

import pytest
from command_line import on_a_terminal
from foreign_graphs import decided_by_red, labelled_by_red

from segdeploy.cli import commands, rendering


def test_nested_facts_have_a_line_each() -> None:
    """Lists of plain values stay on their line; of mappings each has its own."""
    facts = {"name": "unet", "size": [64, 96], "stages": ({"passed": True}, {"passed": None}), "spec": {"margin": 0}}
    assert list(rendering.outline(facts)) == [
        "name: unet",
        "size: [64, 96]",
        "stages:",
        "  0:",
        "    passed: true",
        "  1:",
        "    passed: null",
        "spec:",
        "  margin: 0",
    ]


def test_a_long_value_is_cut_where_a_terminal_is_full() -> None:
    assert rendering.short("a" * 160) == "a" * 160
    assert rendering.short("a" * 161) == "a" * 157 + "..."


def test_a_layer_is_called_by_its_module() -> None:
    assert rendering.layer_name("encoder.0.1.conv/Conv") == "encoder.0.1.conv"
    assert rendering.layer_name("up.3/Resize") == "up.3/Resize"


def test_a_missing_number_is_a_dash() -> None:
    assert (rendering.number(0.5, ".1%"), rendering.number(None, ".1%")) == ("50.0%", "-")
    assert (rendering.miou(0.5), rendering.miou(None)) == ("mIoU 0.5000", "no mIoU")


# Tables


def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int | None) -> str:
    """A table of two rows, 100 columns wide."""
    table = rendering.table("layer", "agreement", "mIoU, points", "what it costs")
    table.add_row("encoder.0.1.conv", "99.9812%", "-0.031", "1,024" + "0" * 40)
    table.add_row("classifier", "-", "", "[1]")
    if width is None:
        monkeypatch.delenv("COLUMNS", raising=False)
    else:
        monkeypatch.setenv("COLUMNS", str(width))
    rendering.show({}, as_json=False, lines=["below"], table=lambda: table)
    return capsys.readouterr().out


@pytest.mark.parametrize("width", [None, 200, 120])
def test_a_table_that_fits_is_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int | None
) -> None:
    """Without a terminal it has room: a log is not cut at eighty columns."""
    lines = [line.split() for line in shown(capsys, monkeypatch, width).splitlines() if line.strip()]
    assert lines[0] == ["layer", "agreement", "mIoU,", "points", "what", "it", "costs"]
    assert lines[2] == ["encoder.0.1.conv", "99.9812%", "-0.031", "1,024" + "0" * 40]
    assert lines[-1] == ["below"]


@pytest.mark.parametrize("width", [20, 40, 60, 80])
def test_a_table_that_does_not_fit_has_a_block_for_each_row(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    assert shown(capsys, monkeypatch, width).splitlines() == [
        "encoder.0.1.conv",
        "  agreement      99.9812%",
        "  mIoU, points   -0.031",
        f"  what it costs  1,024{'0' * 40}",
        "classifier",
        "  agreement      -",
        "  mIoU, points   ",
        "  what it costs  [1]",
        "",
        "below",
    ]


WITH_TABLES = {
    "parity": ("parity --data data --engine ort:fp32", "runtime agreement boundary near-ties unexplained verdict"),
    "bench": ("bench --data data --engine ort:fp32 --runs 2", "level batch median images/s mIoU agreement p99"),
    "sensitivity": ("sensitivity --data data", "agreement change costs"),
}


@pytest.mark.parametrize("command", WITH_TABLES)
@pytest.mark.usefixtures("labelled", "workspace")
def test_a_table_is_read_at_60_columns(command: str) -> None:
    """On a terminal of that width, no header and no number is cut or broken."""
    arguments, words = WITH_TABLES[command]
    out = on_a_terminal(*arguments.split(), COLUMNS="60", LINES="50", NO_COLOR="1")
    rows = [line.rstrip() for line in out.replace("\r", "").splitlines() if line.startswith("  ")]
    assert set(words.split()) <= {line.split()[0].rstrip(",") for line in rows}
    assert max(map(len, rows)) <= 60
    assert "…" not in out


NARROW = "adopt"  # its table has two columns


@pytest.mark.usefixtures("workspace")
def test_a_narrow_table_stays_one_at_60_columns() -> None:
    decided_by_red(Path("theirs.onnx"))
    labelled_by_red(Path("by_red"))
    asked = [NARROW, "theirs.onnx", "--name", "mine", "--data", "by_red"]
    out = on_a_terminal(*asked, COLUMNS="60", LINES="50", NO_COLOR="1")
    lines = [re.split(r"\s{2,}", line.strip()) for line in out.replace("\r", "").splitlines()]
    assert ["-1..1", "1.0000"] in lines
    assert ["-1..1 letterboxed", "1.0000"] in lines


def test_every_command_that_shows_a_table_is_tested() -> None:
    files = [file for file in Path(commands.__path__[0]).glob("*.py") if "table=" in file.read_text(encoding="utf-8")]
    found = [file.stem.removesuffix("_") for file in files]
    assert sorted(found) == sorted([NARROW, *WITH_TABLES])
