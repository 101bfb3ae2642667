"""`python -m segdeploy` is the command."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Run


@pytest.mark.parametrize(
    "arguments,code", [("--version", 0), ("trust", 0), ("nothing", 2), ("infer nowhere", 2), ("inspect x.onnx", 3)]
)
def test_it_prints_and_ends_as_the_command_does(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.onnx").write_bytes(b"nothing of ours")
    by_name = run(*arguments.split())
    done = subprocess.run(
        [sys.executable, "-m", "segdeploy", *arguments.split()], capture_output=True, text=True, check=False
    )
    assert done.returncode == by_name.code == code
    assert done.stdout == by_name.out
    assert done.stderr.replace("python -m segdeploy", "segdeploy") == by_name.err
