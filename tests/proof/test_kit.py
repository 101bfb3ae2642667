"""A proof kit gives back what it was made of, and nothing that was tampered with is read as one."""

import dataclasses
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from conftest import SPEC, photograph
from numpy.typing import NDArray

from segdeploy import typed_json
from segdeploy.errors import InvalidFileError
from segdeploy.proof import kit
from segdeploy.proof.kit import Header
from segdeploy.proof.limits import FLOAT32
from segdeploy.proof.reference import Mask
from segdeploy.proof.samples import Sample

PATH = Path("export/unet.fp32.proof")
HEADER = Header(
    spec=typed_json.to_builtins(SPEC),
    weights_sha256="0" * 64,
    precision="fp32",
    limits=FLOAT32,
    names=(),
    has_truth=(),
    selected_among=3,
)


class Halves:
    """A reference that calls the bright half class 1, the middle grey undecided, and the first column a pooling tie."""

    kind: Final = "PyTorch"
    spec = SPEC

    def class_map(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], Mask]:
        grey = image.mean(axis=2)
        return (grey > 127).astype(np.uint8), np.abs(grey - 127) < 8

    def pool_ties(self, image: NDArray[np.uint8]) -> Mask:
        tied = np.zeros(image.shape[:2], bool)
        tied[:, 0] = True
        return tied


class Some:
    """So many samples; every second one has a truth of a size of its own."""

    def __init__(self, count: int) -> None:
        self.samples = [
            Sample(
                f"{seed}.png",
                photograph(64, 64, seed),
                np.full((30 + seed, 40), seed % 2, np.uint8) if seed % 2 else None,
            )
            for seed in range(count)
        ]

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)


def test_a_kit_gives_back_what_it_was_made_of() -> None:
    samples, reference = Some(5), Halves()
    found = kit.from_bytes(kit.to_bytes(HEADER, reference, samples), PATH)
    assert found.spec == SPEC
    assert (found.header.limits, found.header.selected_among) == (FLOAT32, 3)
    assert [sample.name for sample in found] == [f"{seed}.png" for seed in range(5)]
    held = found.reference()
    assert (held.kind, held.spec) == ("proof kit", SPEC)
    for given, sample in zip(samples, found, strict=True):
        assert np.array_equal(sample.image, given.image)
        assert (sample.truth is None) == (given.truth is None)
        assert sample.truth is None or np.array_equal(sample.truth, given.truth)  # type: ignore[arg-type]
        for now, then in zip(held.class_map(sample.image), reference.class_map(given.image), strict=True):
            assert np.array_equal(now, then)
        assert np.array_equal(held.pool_ties(sample.image), reference.pool_ties(given.image))


def test_a_kit_holds_so_many_images_and_takes_them_from_everywhere() -> None:
    found = kit.from_bytes(kit.to_bytes(HEADER, Halves(), Some(kit.MOST_IMAGES + 9)), PATH)
    assert len(found) == kit.MOST_IMAGES
    assert kit.spread(3) == [0, 1, 2]
    spread = kit.spread(1000)
    assert (len(set(spread)), spread[0]) == (kit.MOST_IMAGES, 0)
    assert spread[-1] > 950


def parts_of(content: bytes) -> dict[str, NDArray[np.generic]]:
    with np.load(io.BytesIO(content)) as arrays:
        return dict(arrays)


def packed(parts: dict[str, NDArray[np.generic]]) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=True, **parts)
    return file.getvalue()


@pytest.mark.parametrize("name", ["header", "images", "class_maps", "near_ties", "pool_ties", "truth_1"])
@pytest.mark.parametrize("fault", ["missing", "another shape", "another type", "objects"])
def test_a_part_that_does_not_fit_is_refused(name: str, fault: str) -> None:
    parts = parts_of(kit.to_bytes(HEADER, Halves(), Some(3)))
    if fault == "missing":
        del parts[name]
    elif fault == "another shape":
        parts[name] = parts[name].ravel()[:-3]  # the header ends in a line feed, which is no loss
    elif fault == "another type":
        parts[name] = parts[name].astype(np.float64)
    else:
        parts[name] = np.array([{"code": "runs"}], dtype=object)
    with pytest.raises(InvalidFileError, match=r"unet\.fp32\.proof"):
        kit.from_bytes(packed(parts), PATH)


def test_a_class_that_is_none_is_refused() -> None:
    parts = parts_of(kit.to_bytes(HEADER, Halves(), Some(3)))
    parts["class_maps"] = np.full_like(parts["class_maps"], len(SPEC.classes))
    with pytest.raises(InvalidFileError, match="do not fit one another"):
        kit.from_bytes(packed(parts), PATH)


@pytest.mark.parametrize("length", [0, 1, 100, -1])
def test_a_kit_that_was_cut_is_refused(length: int) -> None:
    content = kit.to_bytes(HEADER, Halves(), Some(3))
    with pytest.raises(InvalidFileError, match="is no proof kit"):
        kit.from_bytes(content[:length], PATH)


def test_a_kit_that_unpacks_to_a_whole_disk_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    content = kit.to_bytes(HEADER, Halves(), Some(3))
    with zipfile.ZipFile(io.BytesIO(content)) as found:
        unpacked = sum(entry.file_size for entry in found.infolist())
    monkeypatch.setattr(kit, "MOST_BYTES", unpacked - 1)
    with pytest.raises(InvalidFileError, match="unpacks to more than"):
        kit.from_bytes(content, PATH)


def test_an_empty_kit_is_refused() -> None:
    parts = parts_of(kit.to_bytes(HEADER, Halves(), Some(1)))
    header = dataclasses.replace(HEADER, names=(), has_truth=())
    parts["header"] = np.frombuffer(typed_json.to_text(header), np.uint8)
    for name in ("images", "class_maps", "near_ties", "pool_ties"):
        parts[name] = parts[name][:0]
    with pytest.raises(InvalidFileError, match="is no proof kit"):
        kit.from_bytes(packed(parts), PATH)
