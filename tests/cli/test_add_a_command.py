"""A new command is one new file: the one of docs/add-a-command.md, taken from the page as it stands."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "add-a-command.md"
CONTRACT = Path(__file__).with_name("test_command_contract.py")
WITH_IT = "import sys; from segdeploy.cli import commands, main; commands.__path__.append(sys.argv.pop(1))"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the new file lies: a folder that the package counts as its own."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "classes.py").write_text(code)
    return folder


def segdeploy(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """The command line in a process of its own, with the folder beside its commands."""
    program = [sys.executable, "-c", f"{WITH_IT}; main()", str(folder), *arguments]
    return subprocess.run(program, capture_output=True, text=True, check=False)


@pytest.mark.usefixtures("workspace")
def test_it_prints_text_and_json(folder: Path) -> None:
    assert segdeploy(folder, "classes", "unet").stdout == "  0  #14283c  ground\n  1  #ffc400  thing\n"
    document = json.loads(segdeploy(folder, "classes", "unet", "--json").stdout)
    assert document == {
        "schema": 1,
        "model": "unet",
        "classes": [
            {"name": "ground", "value": 0, "colour": "#14283c"},
            {"name": "thing", "value": 1, "colour": "#ffc400"},
        ],
    }


def test_it_is_listed_in_its_place(folder: Path) -> None:
    shown = segdeploy(folder, "--help").stdout
    listed = re.findall(r"^  ([a-z]+)  +[A-Z]", shown.partition("Commands:")[2], re.MULTILINE)
    assert listed[-3:] == ["models", "classes", "doctor"]


@pytest.mark.usefixtures("workspace")
def test_its_errors_are_two_lines(folder: Path) -> None:
    refused = segdeploy(folder, "classes", "nothing")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("Error: there is no model named 'nothing'")
    assert len(refused.stderr.splitlines()) == 2


def test_it_passes_what_all_commands_pass(folder: Path) -> None:
    """The contract tests, with nothing told to them."""
    program = f"{WITH_IT}; import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    options = ["-q", "-p", "no:cacheprovider", "-n", "0", "-k", "classes"]
    done = subprocess.run(
        [sys.executable, "-c", program, folder, CONTRACT, *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) == 6
