"""How the values of options are read, and what is asked of a registry for them."""

from typing import Any

import click
import pytest
from click.testing import CliRunner

from segdeploy import precision
from segdeploy.cli import cli, options


def given(decorator: options.Decorator, *arguments: str) -> dict[str, Any]:
    """What a command with that option is called with."""
    called: dict[str, Any] = {}
    command = click.command()(decorator(lambda **values: called.update(values)))
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 0, done.output
    return called


def test_numbers_and_truth_are_read_as_such_and_the_rest_as_text() -> None:
    arguments = [f"--option={value}" for value in ("a=1", "b=0.5", "c=true", "d=much", "a=2")]
    assert given(options.variant, *arguments) == {"variant": {"a": 2, "b": 0.5, "c": True, "d": "much"}}


def test_a_size_is_height_by_width() -> None:
    assert given(options.size(), "--size", "240X320") == {"size": (240, 320)}
    assert given(options.size()) == {"size": None}


def test_options_are_listed_in_the_order_they_are_named() -> None:
    both = options.together(click.option("--first"), click.option("--second"))
    command = click.command()(both(lambda **_: None))
    assert [parameter.name for parameter in command.params] == ["first", "second"]


@pytest.mark.parametrize("command,others", [("export", ["fp32"]), ("sensitivity", [])])
def test_a_precision_is_offered_because_its_file_is_there(
    monkeypatch: pytest.MonkeyPatch, command: str, others: list[str]
) -> None:
    """In the help as in what is taken."""
    monkeypatch.setattr(precision, "names", lambda: ["bf16", "int4"])
    shown = CliRunner().invoke(cli, [command, "--help"]).output
    assert f"--precision [{'|'.join([*others, 'bf16', 'int4'])}]" in shown
    refused = CliRunner().invoke(cli, [command, "--model", "unet", "--precision", "fp16"])
    assert "'fp16' is not one of" in refused.output
    assert "'bf16', 'int4'" in refused.output


def test_the_help_shows_every_form() -> None:
    """It has them written down, so as not to wait for NumPy; what is given is checked against the files."""
    assert list(options.FORMS) == precision.forms()


def test_a_shell_completes_the_names_of_a_registry() -> None:
    kind = options.Names(lambda: ["signed", "unsigned"])
    parameter = click.Option(["--form"], type=kind)
    completed = kind.shell_complete(click.Context(click.Command("any")), parameter, "u")
    assert [item.value for item in completed] == ["unsigned"]
