"""A sixth engine is one new file: the one of docs/add-an-engine.md, taken from the page as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import photographs

import segdeploy
from segdeploy import engines
from segdeploy.timing import runtime_selection

PAGE = Path(__file__).parents[2] / "docs" / "add-an-engine.md"
CONTRACT = Path(__file__).with_name("test_contract.py")
WITH_IT = "import sys; from segdeploy import engines; engines.__path__.append(sys.argv.pop(1))"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the new file lies: a folder that the package counts as its own."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "reference.py").write_text(code)
    monkeypatch.setattr(engines, "__path__", [*engines.__path__, str(folder)])
    return folder


@pytest.mark.usefixtures("folder")
def test_it_is_known_because_it_is_there(workspace: Path) -> None:
    assert "numpy" in engines.names()
    assert ("numpy", "cpu") in {(each.runtime, each.device) for each in runtime_selection.candidates()}
    assert "engine numpy" in {check.name for check in segdeploy.doctor().checks}
    photographs(workspace, "photos/a.png", "photos/b.png")
    report = segdeploy.infer("photos", engine="numpy:fp32")
    assert (report.done, report.runtime, report.device) == (2, "numpy", "cpu")


@pytest.mark.usefixtures("folder", "workspace")
def test_it_is_proven_like_any_other() -> None:
    found = segdeploy.parity("unet", engine="numpy:fp32")
    assert found.passed
    assert found.stages[-1].runtime == "numpy"


@pytest.mark.usefixtures("folder", "workspace")
def test_a_batch_is_submitted_and_collected() -> None:
    with segdeploy.open("unet", engine="numpy:fp32") as engine:
        batch = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
        ticket = engine.submit(batch)
        np.testing.assert_array_equal(engine.collect(ticket), engine.classify(batch))


@pytest.mark.slow
def test_it_passes_what_all_engines_pass(folder: Path) -> None:
    """The contract tests, with nothing told to them."""
    program = f"{WITH_IT}; import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    options = ["-q", "-p", "no:cacheprovider", "-k", "numpy"]
    done = subprocess.run(
        [sys.executable, "-c", program, folder, CONTRACT, *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 8
