"""An image too large for memory gives the files that it gives where memory is large enough."""

import importlib.util
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SPEC, photograph, photographs
from inference_folders import below, segment, task, written
from numpy.typing import NDArray
from PIL import Image

import segdeploy
from segdeploy import NullEngine, fitting, huge_images, image_files, images
from segdeploy.inference import huge, run, sources
from segdeploy.inference.options import FolderOptions

pytest.importorskip("pyvips")
rasterio = pytest.importorskip("rasterio")

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")  # of what the tests open

HEIGHT, WIDTH = 700, 530
KINDS = ("mask", "npy", "tiff", "overlay")


@pytest.fixture
def one(workspace: Path) -> Path:
    """A photograph that is no multiple of anything, in strips."""
    path = workspace / "photos" / "large.tif"
    path.parent.mkdir()
    Image.fromarray(photograph(HEIGHT, WIDTH)).save(path)
    return path


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has more than 10,000 pixels is too large; rows come in by few, and go out by few."""
    monkeypatch.setattr(huge_images, "LARGEST_IN_MEMORY", 10_000)
    monkeypatch.setattr(huge_images, "_BYTES_AT_ONCE", 40 * WIDTH * 3)
    monkeypatch.setattr(huge, "_PIXELS", 33 * WIDTH)


def class_maps(out: str) -> dict[str, NDArray[Any]]:
    with rasterio.open(f"{out}-tiff/large.tif") as file:
        tiff = file.read(1)
    return {
        "mask": images.read_mask(Path(out, "large.png")),
        "npy": np.load(f"{out}-npy/large.npy"),
        "tiff": tiff,
    }


@pytest.mark.parametrize("fit", ["stretch", "letterbox", "tile"])
@pytest.mark.usefixtures("one")
def test_every_file_holds_the_classes_that_memory_would_have_given(fit: Any, request: pytest.FixtureRequest) -> None:  # noqa: ANN401
    how = FolderOptions(fit=fit)
    before = segment("photos", out="whole", write=KINDS, how=how)
    request.getfixturevalue("little_memory")
    after = segment("photos", out="rows", write=KINDS, how=how)
    assert (before.done, after.done) == (1, 1)
    expected = class_maps("whole")
    assert len(np.unique(expected["mask"])) == 2, "or nothing would be shown"
    for kind, found in class_maps("rows").items():
        np.testing.assert_array_equal(found, expected[kind], err_msg=kind)
    areas = [Path(out, ".segdeploy/areas.csv").read_text() for out in ("whole", "rows")]
    assert areas[0] == areas[1]
    assert images.is_ours(Path("rows/large.png"))
    again = segment("photos", out="rows", write=KINDS, how=how)
    assert (again.done, again.unchanged) == (0, 1)


@pytest.mark.usefixtures("one", "little_memory")
def test_pictures_of_it_are_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge, "LONGEST_SIDE", 140)
    segment("photos", write=("mask", "overlay", "side"))
    with Image.open("masks-overlays/large.jpg") as overlay:
        assert overlay.size == (106, 140)
        shown = np.asarray(overlay).astype(int)
    photo = Image.fromarray(photograph(HEIGHT, WIDTH)).resize((106, 140), Image.Resampling.NEAREST)
    small = Image.fromarray(images.read_mask(Path("masks/large.png"))).resize((106, 140), Image.Resampling.NEAREST)
    expected = images.overlay(np.asarray(photo), np.asarray(small), SPEC.colours)
    assert np.abs(shown - expected).mean() < 8
    assert "large.tif" in Path("masks/.segdeploy/contact.html").read_text()


@pytest.mark.usefixtures("one", "little_memory")
def test_a_kind_that_needs_the_whole_class_map_is_refused_and_the_others_are_made() -> None:
    report = segment("photos", write=("mask", "geojson"))
    assert report.done == 0
    (failure,) = report.failed
    assert failure.reason == "photos/large.tif: an image of 530x700 is too large for --write geojson."
    assert below("masks") == ["large.png"]


@pytest.mark.parametrize("name", ["half.tif", "half.png", "half.jpg"])
@pytest.mark.usefixtures("little_memory")
def test_a_damaged_one_leaves_no_file_and_is_noted(workspace: Path, name: str) -> None:
    path = workspace / "photos" / name
    path.parent.mkdir()
    Image.fromarray(photograph(HEIGHT, WIDTH)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    report = segment("photos", write=KINDS)
    (failure,) = report.failed
    assert f"photos/{name} cannot be read: " in failure.reason
    assert not any(below(folder) for folder in Path().glob("masks*"))
    assert segment("photos", write=KINDS).failed_before


@pytest.mark.usefixtures("one", "little_memory")
def test_one_that_changes_meanwhile_leaves_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path("photos/large.tif")
    honest = fitting.strips

    def strips(*given: Any) -> Any:  # noqa: ANN401 - as it gives
        yield from honest(*given)
        path.write_bytes(path.read_bytes() + b" ")

    monkeypatch.setattr(fitting, "strips", strips)
    (failure,) = segment("photos").failed
    assert "changed while it was read" in failure.reason
    assert below("masks") == []
    monkeypatch.setattr(fitting, "strips", honest)
    assert segment("photos").done == 1


@pytest.mark.usefixtures("one", "little_memory")
def test_a_run_that_is_stopped_leaves_it_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C does not wait for an hour's image."""
    honest = huge.made
    stops: list[threading.Event] = []

    def made(*given: Any, stop: threading.Event, **how: Any) -> Any:  # noqa: ANN401 - as it is given
        stops.append(stop)
        return honest(*given, stop=stop, **how)

    class Stopping(NullEngine):
        def _submit(self, batch: NDArray[np.uint8]) -> NDArray[np.uint8]:
            stops[0].set()
            return super()._submit(batch)

    monkeypatch.setattr(huge, "made", made)
    images_found, _ = sources.find(["photos"], leave_out=Path("masks"))
    with Stopping(fitting.with_fit(SPEC, "tile")) as engine:
        summary = run.run(engine, task(images_found), done=lambda: None)
    assert (summary.done, summary.left, summary.failed) == (0, 1, [])
    assert below("masks") == []


@pytest.mark.usefixtures("one", "little_memory")
def test_a_full_disk_ends_the_run_and_leaves_nothing_half_written(small_disk: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(noise).save("photos/large.tif")
    with pytest.raises(segdeploy.errors.SegdeployError, match="cannot write"):
        segment("photos", out=str(small_disk / "masks"), how=FolderOptions(fit="tile"))
    assert below(small_disk / "masks") == []


@pytest.mark.usefixtures("one", "little_memory")
def test_a_file_that_segdeploy_did_not_write_stays(workspace: Path) -> None:
    photographs(workspace / "masks", "large.png")
    before = Path("masks/large.png").read_bytes()
    (failure,) = segment("photos").failed
    assert "segdeploy did not write it" in failure.reason
    assert Path("masks/large.png").read_bytes() == before


@pytest.mark.usefixtures("little_memory")
def test_what_is_too_large_and_not_read_in_rows_gives_no_mask(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in rows, its four inks would pass for three colours."""
    monkeypatch.setattr(image_files, "MAX_PIXELS", 20_000)
    (workspace / "photos").mkdir()
    Image.fromarray(photograph(HEIGHT, WIDTH)).convert("CMYK").save("photos/large.jpg")
    (failure,) = segment("photos").failed
    assert "not read in rows: its colours are CMYK" in failure.reason
    assert below("masks") == []


@pytest.mark.usefixtures("one")
def test_without_libvips_it_is_said_what_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "MAX_PIXELS", 10_000)
    monkeypatch.setattr(huge_images, "is_installed", lambda: False)
    (failure,) = segment("photos").failed
    assert "530x700 pixels" in failure.reason
    assert "pip install 'segdeploy[huge]'" in failure.reason


def test_a_geotiff_lies_where_the_photo_lies(workspace: Path, request: pytest.FixtureRequest) -> None:
    """In memory and in rows; with the palette and overviews that nearest neighbours give."""
    transform = rasterio.Affine(10, 0, 399_960, 0, -10, 5_700_000)
    (workspace / "photos").mkdir()
    about = {"height": 1300, "width": 1100, "count": 3, "dtype": "uint8", "crs": "EPSG:32632", "transform": transform}
    with rasterio.open("photos/large.tif", "w", driver="GTiff", **about) as file:
        file.write(photograph(1300, 1100).transpose(2, 0, 1))
    found = []
    for out in ("whole", "rows"):
        if out == "rows":
            request.getfixturevalue("little_memory")
        assert segment("photos", out=out, write=("mask", "tiff")).done == 1
        with rasterio.open(f"{out}-tiff/large.tif") as mask:
            assert (mask.crs, mask.transform) == (rasterio.crs.CRS.from_epsg(32632), transform)
            assert mask.block_shapes == [(512, 512)]
            assert mask.overviews(1) == [2, 4]
            assert mask.colormap(1)[1] == (*SPEC.colours[1], 255)
            found.append(mask.read(1))
            np.testing.assert_array_equal(found[-1], images.read_mask(Path(out, "large.png")))
            smaller = mask.read(1, out_shape=(650, 550))
        np.testing.assert_array_equal(smaller, found[-1][::2, ::2])
    np.testing.assert_array_equal(*found)


@pytest.mark.usefixtures("one", "little_memory")
def test_an_image_without_a_place_gets_none() -> None:
    segment("photos", write=("tiff",))
    with rasterio.open("masks-tiff/large.tif") as mask:
        assert (mask.crs, mask.transform.is_identity) == (None, True)


def test_tiff_without_rasterio_is_refused_before_the_work(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photographs(workspace / "photos", "a.png")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "rasterio" else find(name))
    with pytest.raises(segdeploy.errors.MissingRuntimeError, match="rasterio is not installed"):
        segment("photos", write=("mask", "tiff"))
    assert not Path("masks").exists()


@pytest.mark.usefixtures("little_memory")
def test_several_of_them_and_small_ones_are_all_done(workspace: Path) -> None:
    photographs(workspace / "photos", *(f"{index}.png" for index in range(6)))
    for index in range(3):
        Image.fromarray(photograph(300 + index, 200)).save(workspace / "photos" / f"large{index}.png")
    with NullEngine(SPEC) as engine:
        summary = written(engine, "mask", "npy")
    assert (summary.done, summary.failed) == (9, [])


@pytest.mark.usefixtures("little_memory")
def test_an_engine_that_serves_one_thread_is_never_called_by_two(workspace: Path) -> None:
    """Small images are at work beside a large one."""
    photographs(workspace / "photos", *(f"{index}.png" for index in range(20)))
    Image.fromarray(photograph(HEIGHT, WIDTH)).save(workspace / "photos" / "0-large.png")
    at_once, most = [0], [0]

    class Alone(NullEngine):
        concurrent = False

        def _submit(self, batch: NDArray[np.uint8]) -> NDArray[np.uint8]:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
            threading.Event().wait(0.002)
            at_once[0] -= 1
            return super()._submit(batch)

    with Alone(fitting.with_fit(SPEC, "tile")) as engine:
        assert written(engine).done == 21
    assert most[0] == 1
