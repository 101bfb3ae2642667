"""A further precision is one new file and three lines: those of docs/add-a-precision.md, as they stand there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import segdeploy

PAGE = Path(__file__).parents[2] / "docs" / "add-a-precision.md"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package with what the page adds."""
    source, copy = Path(segdeploy.__file__).parent, tmp_path / "package" / "segdeploy"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__", "weights"))
    (copy / "weights").symlink_to(source / "weights")
    text = PAGE.read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (copy / "precision" / "bf16.py").write_text(example, encoding="utf-8")
    (lines,) = re.findall(r"```diff\n(.*?)```", text, re.DOTALL)
    registered = re.findall(r"--- a/segdeploy/(\S+)\n (.*)\n\+(.*)\n", lines)
    assert len(registered) <= 3
    for name, before, added in registered:
        content = (copy / name).read_text(encoding="utf-8")
        place = re.search(rf"^{re.escape(before)}.*\n", content, re.MULTILINE)
        assert place is not None, f"{name} has no line {before!r}"
        (copy / name).write_text(content[: place.end()] + added + "\n" + content[place.end() :], encoding="utf-8")
    return copy.parent


@pytest.mark.slow
def test_it_passes_what_every_precision_passes(package: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(package)}
    contract = str(Path(__file__).with_name("test_precision_contract.py"))
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-k", "bf16", contract]
    done = subprocess.run(command, cwd=package, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"[5-9] passed", done.stdout), done.stdout


@pytest.mark.slow
def test_the_command_line_lists_it(package: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(package)}
    command = [sys.executable, "-m", "segdeploy", "export", "--help"]
    done = subprocess.run(command, cwd=package, env=environment, capture_output=True, text=True, check=True)
    assert "bf16" in done.stdout
