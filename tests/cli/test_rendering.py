"""Facts as lines of text."""

from segdeploy.cli import rendering


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
