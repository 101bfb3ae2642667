"""A further layout is one new file: the one of docs/add-a-layout.md, taken from the page as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import photographs
from PIL import Image

import segdeploy
from segdeploy.data import layouts
from segdeploy.data.dataset import DataFolder
from segdeploy.errors import InvalidRequestError

PAGE = Path(__file__).parents[2] / "docs" / "add-a-layout.md"
CONTRACT = Path(__file__).with_name("test_layouts.py")
WITH_IT = """
import sys
from pathlib import Path

import pytest

from segdeploy.data import layouts

folder = Path(sys.argv.pop(1))
layouts.__path__.append(str(folder))


class Told:
    def pytest_sessionstart(self):
        import layout_folders

        exec((folder / "write.txt").read_text(), vars(layout_folders))


sys.exit(pytest.main(sys.argv[1:], plugins=[Told()]))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the new file lies: a folder that the package counts as its own; how such a folder is written beside it."""
    layout, writer = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "pairs.py").write_text(layout)
    (folder / "write.txt").write_text(writer)
    monkeypatch.setattr(layouts, "__path__", [*layouts.__path__, str(folder)])
    return folder


@pytest.fixture
def pairs(labelled: Path, tmp_path: Path) -> Path:
    """The pictures of a plain folder as pairs in one."""
    root = photographs(tmp_path / "pairs", *(f"{index}.jpg" for index in range(6)))
    for mask in (labelled / "masks").iterdir():
        Image.open(mask).save(root / f"{mask.stem}_mask.png")
    return root


@pytest.mark.usefixtures("folder", "workspace")
def test_it_is_known_because_it_is_there(pairs: Path, labelled: Path) -> None:
    assert "pairs" in layouts.names()
    assert [picture.image.name for picture in layouts.open_folder(pairs).val] == ["0.jpg"]
    assert layouts.open_folder(labelled).layout == "plain"
    assert segdeploy.evaluate("unet", data=pairs, engine="ort:fp32").images == 1
    (pairs / "classes.csv").write_text("ground,0,0,0\nthing,9,9,9\n")
    classes = layouts.classes_of(layouts.open_folder(pairs), ignore_index=255)
    assert classes.names == ("ground", "thing")


@pytest.mark.usefixtures("folder")
def test_a_folder_that_two_recognise_is_opened_by_neither(pairs: Path, labelled: Path) -> None:
    """Until one is named: either would read other masks."""
    for name in ("images", "masks"):
        (labelled / name).rename(pairs / name)
    with pytest.raises(InvalidRequestError, match="looks like the layouts pairs and plain") as refused:
        layouts.open_folder(pairs)
    assert "--layout pairs" in refused.value.remedy
    for name in ("pairs", "plain"):
        named = layouts.open_folder(DataFolder(pairs, name))
        assert named.layout == name
        assert named.pictures == layouts.layout(name).open_folder(pairs).pictures


@pytest.mark.usefixtures("folder")
def test_photographs_without_masks_are_no_pairs(tmp_path: Path) -> None:
    root = photographs(tmp_path / "data", "a.jpg")
    assert not layouts.is_labelled(root)
    with pytest.raises(InvalidRequestError, match=r"images is missing or has no images"):
        layouts.open_folder(root)


@pytest.mark.slow
def test_it_passes_what_all_layouts_pass(folder: Path) -> None:
    """The contract tests, told nothing but how such a folder is written."""
    options = ["-q", "-p", "no:cacheprovider", "-k", "pairs"]
    done = subprocess.run(
        [sys.executable, "-c", WITH_IT, folder, CONTRACT, *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) == 12
