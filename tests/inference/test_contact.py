"""The page of a run, and the table of areas: what they say is what was drawn, and what is unusual is found."""

import base64
import csv
import io
import re
import threading
from pathlib import Path

import numpy as np
from conftest import SPEC, Run, photograph, photographs
from hypothesis import given
from hypothesis import strategies as st
from inference_folders import AGAIN, ORT, indices, segment
from PIL import Image

from segdeploy import images
from segdeploy.images import Photograph
from segdeploy.inference import areas, contact
from segdeploy.inference.contact import Sheet
from segdeploy.inference.options import FolderOptions

SIDE = st.integers(1, 30)
CONTACT, AREAS = Path("masks/.segdeploy/contact.html"), Path("masks/.segdeploy/areas.csv")
PHOTO, CLASS_MAP = Photograph.of(photograph(20, 20)), np.zeros((20, 20), np.uint8)


@given(height=SIDE, width=SIDE, to=st.tuples(st.integers(1, 200), st.integers(1, 200)), seed=st.integers(0, 9))
def test_areas_are_those_of_the_enlarged_class_map(height: int, width: int, to: tuple[int, int], seed: int) -> None:
    class_map = np.random.default_rng(seed).integers(0, 5, (height, width), dtype=np.uint8)
    large = images.to_photo_size(class_map, height=to[0], width=to[1])
    expected = np.bincount(large.ravel(), minlength=6).tolist()
    assert areas.counted(class_map, height=to[0], width=to[1], classes=6) == expected


def test_the_table_has_every_image_of_the_run(run: Run, workspace: Path) -> None:
    """Those of an earlier run too, where they are in this one; what failed has no areas."""
    photographs(workspace / "photos", "a.jpg", "b.png", "sub/c.jpg")
    segment("photos/a.jpg", "photos/b.png")
    (workspace / "photos/bad.png").write_bytes(b"")
    assert run("infer", "photos", *ORT).code == 5
    with AREAS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == ["photos/a.jpg", "photos/b.png", "photos/sub/c.jpg"]
    for row in rows:
        mask = indices(Path("masks", Path(row["image"]).relative_to("photos").with_suffix(".png")))
        assert int(row["pixels"]) == mask.size
        assert [int(row[name]) for name in SPEC.classes] == np.bincount(mask.ravel(), minlength=2).tolist()


def test_the_table_has_nothing_of_another_engine_or_decoding(workspace: Path) -> None:
    photographs(workspace / "photos", "a.jpg", "b.png")
    segment("photos")
    assert segment("photos", how=FolderOptions(decode="scaled", limit=1)).left == 1
    assert len(AREAS.read_text().splitlines()) == 2


def test_the_page_shows_photo_and_mask_and_what_failed(run: Run, workspace: Path) -> None:
    photographs(workspace / "photos", "a.jpg", "<b>&.png")
    (workspace / "photos/bad.png").write_bytes(b"")
    run("infer", "photos", *ORT)
    page = CONTACT.read_text()
    assert "<b>photos/&lt;b&gt;&amp;.png</b>" in page
    assert "photos/bad.png cannot be read: the file is empty." in page
    assert not re.search(r"https?://|<script", page)
    pictures = re.findall(r"base64,([^']+)'", page)
    assert len(pictures) == 2
    is_first = page.index("photos/&lt;b&gt;") < page.index("photos/a.jpg")  # they end in any order
    with Image.open(io.BytesIO(base64.b64decode(pictures[0 if is_first else 1]))) as picture:
        shown = np.asarray(picture).astype(int)
    assert shown.shape == (60, 2 * 80, 3)
    assert np.abs(shown[:, :80] - images.read("photos/<b>&.png")).mean() < 12


def test_a_run_that_did_nothing_leaves_the_page(workspace: Path) -> None:
    photographs(workspace / "photos", "a.jpg")
    segment("photos")
    before = CONTACT.read_bytes()
    segment("photos")
    assert CONTACT.read_bytes() == before
    segment("photos", how=AGAIN)
    assert CONTACT.read_bytes() != before  # it says how fast


def test_what_is_unlike_the_rest_is_found_among_many() -> None:
    sheet = Sheet(SPEC.colours)
    for index in range(3000):
        shares = [50 + index % 10, 50 - index % 10]
        if index in {700, 2100}:
            shares = [0, 100] if index == 700 else [5, 95]
        sheet.look(f"{index}.png", shares, PHOTO, CLASS_MAP)
    assert [card.name for card in sheet.odd][:2] == ["700.png", "2100.png"]
    assert len(sheet.odd) == len(sheet.sample) == contact.SHOWN
    assert len({card.name for card in sheet.sample}) == contact.SHOWN
    assert max(int(card.name.removesuffix(".png")) for card in sheet.sample) > 1000


def test_where_every_image_shows_one_class_none_is_odd_for_that() -> None:
    sheet = Sheet(SPEC.colours)
    for index in range(100):
        sheet.look(f"{index}.png", [100, 0], PHOTO, CLASS_MAP)
    assert sheet.odd == []


def test_threads_may_look_at_once() -> None:
    sheet = Sheet(SPEC.colours)

    def look(first: int) -> None:
        for index in range(first, 400, 4):
            sheet.look(f"{index}.png", [index, 400 - index], PHOTO, CLASS_MAP)

    threads = [threading.Thread(target=look, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sheet.sample) == contact.SHOWN


def test_a_picture_lies_on_its_class_map() -> None:
    inner = np.zeros((32, 32, 3), np.uint8)
    inner[8:16, 16:24] = 255
    class_map = (inner[..., 0] > 0).astype(np.uint8)
    sheet = Sheet(((0, 0, 0), (255, 0, 0)))
    sheet.look("a.png", [1, 1], Photograph.of(inner), class_map)
    with Image.open(io.BytesIO(sheet.sample[0].picture)) as picture:
        shown = np.asarray(picture).astype(int)
    assert shown.shape == (32, 64, 3)
    assert shown[10:14, 18:22].min() > 200
    assert shown[10:14, 50:54, 0].min() > 200
    assert shown[10:14, 50:54, 2].max() < 170
