"""Files that are damaged, or of a format that Pillow reads with another package, are named as what they are."""

import io
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SPEC, photograph
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PpmImagePlugin

from segdeploy import images
from segdeploy.errors import InvalidFileError

END = b"\xff\xd9"
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
JXL = b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(100)
READ_IN_THREADS = """
import concurrent.futures, os, sys
from segdeploy import images
from segdeploy.errors import InvalidFileError

def refused(path):
    try:
        images.read(path)
    except InvalidFileError as error:
        return error.what

os.write(2, b"before\\n")
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    reasons = list(pool.map(refused, sys.argv[1:] * 20))
os.write(2, b"after\\n")
print("\\n".join(map(str, dict.fromkeys(reasons))))
"""


def encoded(form: str = "JPEG", *, height: int = 240, width: int = 320, **options: Any) -> bytes:  # noqa: ANN401 - Pillow's
    noisy = photograph(height, width).astype(int) + np.random.default_rng(0).integers(-40, 40, (height, width, 3))
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, form, **options)
    return file.getvalue()


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def refusal(path: Path, read: Callable[[Path], Any] = images.read) -> InvalidFileError:
    with pytest.raises(InvalidFileError) as refused:
        read(path)
    assert str(path) in refused.value.what
    assert len(str(refused.value).splitlines()) == 2
    return refused.value


# --- JPEG

JPEGS: dict[str, dict[str, Any]] = {
    "baseline": {"quality": 90},
    "optimised": {"quality": 90, "optimize": True},
    "progressive": {"quality": 90, "progressive": True},
    "restarts": {"quality": 90, "restart_marker_blocks": 4},
    "coarse": {"quality": 90, "subsampling": "4:4:4"},
    "thumbnail": {"quality": 90, "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0" + END},
    "comment": {"quality": 90, "comment": b"\xff\xda" + END},
}


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("kept", [0.5, 0.9, 0.99, 0.999, 1.0])
def test_a_jpeg_whose_end_is_zeros_or_missing_is_damaged(tmp_path: Path, kind: str, kept: float) -> None:
    """As after a download or a copy that broke off: the decoder takes zeros for pixels, and the rest is grey."""
    whole = encoded(**JPEGS[kind])
    there = min(int(kept * len(whole)), len(whole) - 2)
    refusal(written(tmp_path / "cut.jpg", whole[:there]))
    for zeros in (len(whole) - there, 4096, 500_000):
        refused = refusal(written(tmp_path / "zeros.jpg", whole[:there] + bytes(zeros)))
        assert "damaged" in f"{refused}" or "truncated" in f"{refused}"


def test_a_jpeg_that_decodes_to_its_last_row_out_of_zeros_is_damaged(tmp_path: Path) -> None:
    """The decoder alone says nothing: it had pixels enough."""
    whole = encoded(quality=90)
    filled = written(tmp_path / "filled.jpg", whole[: len(whole) // 2] + bytes(500_000))
    with Image.open(filled) as image:
        image.load()
    refused = refusal(filled)
    assert refused.what == f"{filled} cannot be read: its end is missing, or filled with zeros."
    assert refused.remedy == "Replace the file: it is damaged."


@pytest.mark.parametrize("kind", sorted(JPEGS.keys() - {"progressive"}))
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9, 0.97])
@pytest.mark.parametrize("height,width", [(240, 320), (241, 323), (239, 313)])
def test_a_jpeg_whose_last_rows_are_missing_before_its_end_is_damaged(
    tmp_path: Path, kind: str, kept: float, height: int, width: int
) -> None:
    """As where a camera's stream lost a packet: the marker is there, and the decoder makes up what was before it."""
    whole = encoded(height=height, width=width, **JPEGS[kind])
    short = written(tmp_path / "short.jpg", whole[: int(kept * len(whole))].rstrip(b"\xff") + END)
    with Image.open(short) as image:
        image.load()
    assert refusal(short).what == f"{short} cannot be read: its last rows are missing."


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("height,width", [(240, 320), (1, 1), (9, 17)])
def test_a_whole_jpeg_that_ends_flat_is_read(tmp_path: Path, kind: str, height: int, width: int) -> None:
    """A night sky, a page's margin: what a made-up end looks like."""
    photo = photograph(height, width)
    photo[height // 2 :] = (20, 20, 30)
    for mode in ("RGB", "L", "CMYK"):
        Image.fromarray(photo).convert(mode).save(tmp_path / "a.jpg", **JPEGS[kind])
        assert images.read(tmp_path / "a.jpg").shape == (height, width, 3)


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("behind", [b"", bytes(1), bytes(5000), b"\xff" * 9, encoded(height=20, width=20)])
def test_what_follows_the_end_of_a_jpeg_does_not_matter(tmp_path: Path, kind: str, behind: bytes) -> None:
    """Phones put films and second pictures there, disks fill their last block with zeros."""
    whole = encoded(**JPEGS[kind])
    expected = images.read(written(tmp_path / "a.jpg", whole))
    assert np.array_equal(images.read(written(tmp_path / "b.jpg", whole + behind)), expected)


def test_markers_may_be_filled_up(tmp_path: Path) -> None:
    """ITU T.81, B.1.1.2: any number of 0xff before a marker."""
    whole = encoded(quality=90)
    filled = written(tmp_path / "a.jpg", whole[:2] + b"\xff\xff" + whole[2:-2] + b"\xff\xff" + END)
    assert np.array_equal(images.read(filled), images.read(written(tmp_path / "b.jpg", whole)))


@settings(max_examples=60)
@given(kept=st.floats(0.2, 1, exclude_max=True), kind=st.sampled_from(sorted(JPEGS)), zeros=st.integers(0, 300_000))
def test_no_jpeg_that_lost_its_end_is_read(
    tmp_path_factory: pytest.TempPathFactory, kept: float, kind: str, zeros: int
) -> None:
    whole = encoded(height=60, width=80, **JPEGS[kind])
    there = min(int(kept * len(whole)), len(whole) - 1)
    refusal(written(tmp_path_factory.getbasetemp() / "lost.jpg", whole[:there] + bytes(zeros)))


# --- formats of other packages


@pytest.fixture
def _without_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pillow_heif", "pillow_jxl"):
        monkeypatch.setitem(sys.modules, module, None)


@pytest.mark.usefixtures("_without_plugins")
@pytest.mark.parametrize("suffix", [".heic", ".hif", ".jxl", ".jpg", ""])
@pytest.mark.parametrize(
    "content,called,package",
    [
        (HEIC, "HEIC", "pillow-heif"),
        (HEIC.replace(b"heic", b"mif1", 1), "HEIC", "pillow-heif"),
        (b"\0\0\0\x14ftypmif1\0\0\0\0heix" + bytes(50), "HEIC", "pillow-heif"),
        (b"\0\0\0\x18ftyphevc\0\0\0\0msf1hevc" + bytes(50), "HEIC", "pillow-heif"),
        (JXL, "JPEG XL", "pillow-jxl-plugin"),
        (b"\xff\x0a" + bytes(50), "JPEG XL", "pillow-jxl-plugin"),
    ],
)
def test_a_format_of_another_package_is_named_with_it(
    tmp_path: Path, suffix: str, content: bytes, called: str, package: str
) -> None:
    """By the content: phones send HEIC that is called .jpg. Masks are read by the same rule."""
    path = written(tmp_path / f"a{suffix}", content)
    for read in (images.read, images.read_mask):
        refused = refusal(path, read)
        assert f"it is {called}, which Pillow reads with another package (pip install {package})" in refused.what
        assert refused.remedy == f"Install it: pip install {package}. Or save the image as PNG or JPEG."


@pytest.mark.usefixtures("_without_plugins")
@pytest.mark.parametrize("suffix", [".heic", ".heif", ".hif", ".jxl"])
def test_a_file_that_is_only_called_so_is_read_for_what_it_is(tmp_path: Path, suffix: str) -> None:
    expected = images.read(written(tmp_path / "a.jpg", encoded()))
    assert np.array_equal(images.read(written(tmp_path / f"a{suffix}", encoded())), expected)
    assert "no image of a known format" in refusal(written(tmp_path / f"b{suffix}", bytes(300))).what
    assert suffix in images.EXTENSIONS


@pytest.mark.usefixtures("_without_plugins")
def test_avif_is_not_taken_for_heic(tmp_path: Path) -> None:
    """Both are HEIF, and name brands of it."""
    avif = encoded("AVIF")
    assert avif[4:12] == b"ftypavif"
    expected = images.read(written(tmp_path / "a.avif", avif))
    general = avif[:8] + b"mif1" + avif[12:]
    assert b"avif" in general[16 : int.from_bytes(general[:4], "big")]
    assert np.array_equal(images.read(written(tmp_path / "b.avif", general)), expected)


def test_an_installed_package_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in, which registers itself as pillow-heif does and reads a PPM behind the first bytes of HEIC."""
    photo = photograph(6, 8)

    class Stand(PpmImagePlugin.PpmImageFile):
        def __init__(self, file: Any, name: str) -> None:  # noqa: ANN401 - Pillow's
            super().__init__(io.BytesIO(file.read()[len(HEIC) :]), name)

    def register_heif_opener() -> None:
        Image.register_open("HEIF", Stand, lambda start: start[4:8] == b"ftyp")

    module = types.ModuleType("pillow_heif")
    module.__dict__["register_heif_opener"] = register_heif_opener
    monkeypatch.setitem(sys.modules, "pillow_heif", module)
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "PPM")
    assert np.array_equal(images.read(written(tmp_path / "a.heic", HEIC + file.getvalue())), photo)


@pytest.mark.parametrize("module,form,suffix", [("pillow_heif", "HEIF", ".heic"), ("pillow_jxl", "JXL", ".jxl")])
def test_the_real_package_reads_it(tmp_path: Path, module: str, form: str, suffix: str) -> None:
    plugin = pytest.importorskip(module, reason=f"{module} is not installed: images of others are not read")
    if form == "HEIF":
        plugin.register_heif_opener()
    read = images.read(written(tmp_path / f"a{suffix}", encoded(form, quality=90)))
    expected = images.read(written(tmp_path / "a.png", encoded("PNG")))
    assert read.shape == expected.shape
    assert np.abs(read.astype(int) - expected).mean() < 30


# --- TIFF


def damaged_tiff(path: Path, compression: str) -> Path:
    bits = Image.fromarray(photograph(64, 64)).convert("1")
    (bits if compression == "group4" else Image.fromarray(photograph(64, 64))).save(path, compression=compression)
    content = bytearray(path.read_bytes())
    for place in range(40, len(content) // 2, 7):
        content[place] ^= 0x5A
    return written(path, bytes(content))


@pytest.mark.parametrize("compression", ["group4", "tiff_lzw", "tiff_deflate"])
def test_libtiff_writes_nothing_and_its_errors_are_ours(tmp_path: Path, compression: str) -> None:
    """It prints to fd 2 by itself, from every thread; other lines stay. Pillow goes on after some of its errors."""
    path = damaged_tiff(tmp_path / "a.tif", compression)
    done = subprocess.run([sys.executable, "-c", READ_IN_THREADS, path], capture_output=True, text=True, check=True)
    assert done.stderr == "before\nafter\n"
    (reason,) = done.stdout.splitlines()
    assert re.fullmatch(
        rf"{path} cannot be read: (its pixel data is damaged \(Fax4Decode\)|decoder error -2)\.", reason
    )


def test_a_whole_tiff_is_read_after_a_damaged_one(tmp_path: Path) -> None:
    """What was said of the one is not held against the other."""
    refusal(damaged_tiff(tmp_path / "a.tif", "group4"))
    photo = photograph(20, 30)
    Image.fromarray(photo).save(tmp_path / "b.tif", compression="tiff_lzw")
    assert np.array_equal(images.read(tmp_path / "b.tif"), photo)


# --- what we wrote ourselves


def test_masks_and_overlays_say_what_they_are(tmp_path: Path) -> None:
    photo = photograph(60, 80)
    class_map = (photo[..., 0] > 127).astype(np.uint8)
    mask = written(tmp_path / "mask.png", images.mask_png(class_map, SPEC.colours))
    overlay = written(tmp_path / "overlay.jpg", images.overlay_jpeg(photo, class_map, SPEC.colours))
    assert images.is_ours(mask)
    assert images.is_ours(overlay)
    with Image.open(mask) as image:
        assert image.info["Software"] == "segdeploy mask"
    with Image.open(overlay) as image:
        assert image.info["comment"] == b"segdeploy overlay"
    assert np.array_equal(images.read_mask(mask), class_map)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x89PNG",
        b"segdeploy mask",
        b"\xff\xd8segdeploy overlay",
        encoded("PNG"),
        encoded(),
        images.jpeg(photograph(9, 9)),
    ],
)
def test_other_files_do_not(tmp_path: Path, content: bytes) -> None:
    assert not images.is_ours(written(tmp_path / "a.png", content))


def test_what_cannot_be_read_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to("loop.png")
    for name in ("nothing.png", "folder.png", "loop.png", "\0.png"):
        assert not images.is_ours(tmp_path / name)
