"""A fifth network is one new file: the one of docs/add-a-model.md, taken from the page as it stands."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import segdeploy

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "add-a-model.md"
CONTRACT = ("models/test_networks.py", "models/test_deployed.py", "graphs/test_to_onnx.py", "engines/test_audit.py")
EXPORT = "export --model fcn --weights random --option multiplier=0.125 --size 64x96 --json"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """In which `segdeploy` is a copy of the package with the new file: options are read beside the other networks."""
    source, package = Path(segdeploy.__file__).parent, tmp_path / "package" / "segdeploy"
    shutil.copytree(source, package, ignore=shutil.ignore_patterns("__pycache__", "weights"))
    (package / "weights").symlink_to(source / "weights")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (package / "models" / "fcn.py").write_text(code, encoding="utf-8")
    return {**os.environ, "PYTHONPATH": str(package.parent)}


@pytest.mark.slow
def test_it_passes_what_all_networks_pass(environment: dict[str, str], tmp_path: Path) -> None:
    """The contract tests, with nothing told to them."""
    contract = [str(ROOT / "tests" / name) for name in CONTRACT]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-k", "fcn", *contract]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) >= 20


@pytest.mark.slow
def test_it_is_listed_exported_and_proven_because_it_is_there(environment: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "segdeploy"]
    listed = subprocess.run(
        [*command, "models"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert "FCN-8s (Long, Shelhamer, Darrell, arXiv:1411.4038)" in listed.stdout
    done = subprocess.run(
        [*command, *EXPORT.split()], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "export" / "fcn.fp32.onnx").is_file()
    manifest = json.loads((tmp_path / "export" / "fcn.fp32.onnx.json").read_text(encoding="utf-8"))
    assert [stage["unexplained"] for stage in manifest["certificate"]["stages"]] == [0, 0]
