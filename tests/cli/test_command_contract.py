"""The contract of every file in segdeploy/cli/commands/: a new one is tested because it is there."""

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from segdeploy.cli import cli, commands

FEWER_LINES_THAN = 200
LIGHT = {"click", "segdeploy"}  # what a command may import beside the standard library, before it is called
LOADED = """
import importlib.util, json, sys
before = set(sys.modules)
import segdeploy.cli
spec = importlib.util.spec_from_file_location("command", sys.argv[1])
sys.modules["command"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
found = {name.partition(".")[0] for name in sys.modules.keys() - before}
print(json.dumps(sorted(found - sys.stdlib_module_names - {"command"})))
"""

each = pytest.mark.parametrize("name", commands.names())


def file_of(name: str) -> Path:
    return Path(str(commands.load(name).__dict__["__file__"]))


def options_of(name: str) -> list[click.Option]:
    return [option for option in commands.load(name).COMMAND.params if isinstance(option, click.Option)]


@each
def test_it_is_called_what_its_file_is(name: str) -> None:
    assert commands.load(name).COMMAND.name == name


@each
def test_the_list_of_commands_says_what_the_command_says(name: str) -> None:
    """The list is read from the text of the files."""
    (listed,) = [command for command in commands.listed() if command.name == name]
    module = commands.load(name)
    assert (listed.order, listed.summary) == (module.ORDER, module.COMMAND.short_help)
    assert listed.summary.endswith(".")


@each
def test_its_help_names_every_option(name: str) -> None:
    shown = CliRunner().invoke(cli, [name, "--help"], prog_name="segdeploy")
    assert shown.exit_code == 0
    assert shown.output.startswith(f"Usage: segdeploy {name} ")
    assert "\\b" not in shown.output
    assert commands.load(name).COMMAND.help
    for option in options_of(name):
        assert option.opts[0] in shown.output


@each
def test_it_prints_json_or_says_why_not(name: str) -> None:
    speaks = any("--json" in option.opts for option in options_of(name))
    assert speaks or vars(commands.load(name))["NO_JSON"]


@each
def test_it_is_one_short_file(name: str) -> None:
    assert len(file_of(name).read_text(encoding="utf-8").splitlines()) < FEWER_LINES_THAN


@each
def test_it_imports_nothing_heavy(name: str) -> None:
    """Its own help must not wait for a runtime, or fail without one."""
    done = subprocess.run([sys.executable, "-c", LOADED, file_of(name)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) <= LIGHT


def test_the_commands_are_listed_as_a_network_meets_them() -> None:
    listed = [command.name for command in commands.listed()]
    journey = ["train", "export", "build", "parity", "bench", "report", "infer", "doctor"]
    assert [name for name in listed if name in journey] == journey
    assert sorted(listed) == commands.names()


def test_a_file_without_its_head_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever writes a command sees at once what it lacks."""
    (tmp_path / "nameless.py").write_text("import click\n")
    monkeypatch.setattr(commands, "__path__", [str(tmp_path)])
    with pytest.raises(ImportError, match=r"nameless\.py has no docstring of one line, or no ORDER"):
        commands.listed()
