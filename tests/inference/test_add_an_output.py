"""Another kind of output is one new file: the one of docs/add-an-output.md, taken from the page as it stands."""

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import photographs
from inference_folders import below, indices, written

from segdeploy.engines import Engine
from segdeploy.inference import outputs

PAGE = Path(__file__).parents[2] / "docs" / "add-an-output.md"
CONTRACT = Path(__file__).with_name("test_outputs.py")
WITH_IT = "import sys; from segdeploy.inference import outputs; outputs.__path__.append(sys.argv.pop(1))"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the new file lies: a folder that the package counts as its own."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "areas.py").write_text(code)
    monkeypatch.setattr(outputs, "__path__", [*outputs.__path__, str(folder)])
    return folder


@pytest.mark.usefixtures("folder")
def test_it_is_written_because_it_is_there(workspace: Path, engine: Engine) -> None:
    photographs(workspace / "photos", "a.png", "sub/b.png")
    assert outputs.parse("mask,areas") == ("mask", "areas")
    assert written(engine, "mask", "areas").done == 2
    assert below("masks-areas") == ["a.csv", "sub/b.csv"]
    with (workspace / "masks-areas/a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    mask = indices(workspace / "masks/a.png")
    assert [(row["class"], int(row["pixels"])) for row in rows] == [
        ("ground", (mask == 0).sum()),
        ("thing", (mask == 1).sum()),
    ]
    assert sum(float(row["share"]) for row in rows) == pytest.approx(1)


def test_it_passes_what_all_outputs_pass(folder: Path) -> None:
    """The contract tests, with nothing told to them."""
    program = f"{WITH_IT}; import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    options = ["-q", "-p", "no:cacheprovider", "-k", "areas"]
    done = subprocess.run(
        [sys.executable, "-c", program, folder, CONTRACT, *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) == 11
