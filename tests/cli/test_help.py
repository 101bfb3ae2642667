"""The help of the real command: complete, and there at once."""

import re
import subprocess
import sys
import time

import click
import pytest
from conftest import Run

from segdeploy.cli import commands

HELP_SECONDS = 0.5
HEAVY = {"torch", "onnx", "onnxscript", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "safetensors", "numpy"}
COMMANDS = commands.names()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(run: Run, command: str) -> None:
    shown = run(command, "--help")
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.startswith(f"Usage: segdeploy {command} [OPTIONS]")
    assert "\\b" not in shown.out
    for parameter in commands.load(command).COMMAND.params:
        if isinstance(parameter, click.Option):
            assert parameter.opts[0] in shown.out


def test_help_lists_every_command_and_opens_with_examples(run: Run) -> None:
    shown = run("--help")
    assert all(re.search(rf"^  {command} +\S", shown.out, re.MULTILINE) for command in COMMANDS)
    assert re.search(r"^ +segdeploy infer ./images  ", shown.out, re.MULTILINE), "the examples are not line by line"


def test_no_command_at_all_shows_the_help(run: Run) -> None:
    shown = run()
    assert (shown.code, shown.out) == (2, "")
    assert "\n  segdeploy infer" in shown.err.replace("    segdeploy", "  segdeploy")


def test_help_comes_at_once(run: Run) -> None:
    """The best of five: others may be at work on this machine."""

    def seconds() -> float:
        started = time.monotonic()
        assert run("--help").code == 0
        return time.monotonic() - started

    assert min(seconds() for _ in range(5)) < HELP_SECONDS


def test_help_imports_nothing_heavy() -> None:
    script = "from segdeploy.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", script, "--help"], capture_output=True, text=True, check=True
    )
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "click" in imported
    assert imported & HEAVY == set()


def test_the_version_is_the_packages(run: Run) -> None:
    from segdeploy import __version__

    assert run("--version").out == f"segdeploy, version {__version__}\n"
