"""Peers are measured as segdeploy is: random turns, the same threads, masks as quickly compressed."""

import io
import os
import runpy
import threading
import zlib
from pathlib import Path
from typing import Any

import _contest
import numpy as np
import pytest
from conftest import photographs
from numpy.typing import NDArray
from PIL import Image

from segdeploy import images

LOOP = Path(_contest.__file__).parent / "peers" / "_loop.py"


@pytest.fixture(scope="module")
def loop() -> dict[str, Any]:
    return runpy.run_path(str(LOOP))


def test_all_have_a_turn_in_every_round_and_none_always_follows_the_same_other() -> None:
    turns: list[str] = []
    found = _contest.in_turns(40, {name: lambda name=name: turns.append(name) for name in "abc"})  # type: ignore[misc]
    rounds = ["".join(turns[start : start + 3]) for start in range(0, 120, 3)]
    assert {"".join(sorted(each)) for each in rounds} == {"abc"}
    assert len(set(rounds)) == 6
    assert {len(answers) for answers in found.values()} == {40}


def test_a_peers_mask_is_compressed_as_fast_as_pillow_can(loop: dict[str, Any]) -> None:
    """Pillow filters the rows of a picture without a palette, and its default compression takes longer."""
    class_map = (np.indices((48, 64)).sum(0) // 7 % 2).astype(np.uint8)
    theirs = loop["encoded"](class_map, (64, 48))
    with Image.open(io.BytesIO(theirs)) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), class_map)
    rows = np.pad(class_map, ((0, 0), (1, 0)))  # no filter, in front of each row
    compressor = zlib.compressobj(strategy=zlib.Z_RLE)
    assert compressed(theirs) == compressor.compress(rows.tobytes()) + compressor.flush()


def compressed(png: bytes) -> bytes:
    """The pixels: a palette before them does not count."""
    start = png.index(b"IDAT") + 4
    return png[start : start + int.from_bytes(png[start - 8 : start - 4], "big")]


@pytest.mark.parametrize("count", [1, 3])
def test_files_of_a_batch_are_read_by_several_threads_and_stay_in_their_order(
    loop: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    readers: set[str] = set()
    honest = np.asarray

    def noted(picture: object) -> NDArray[np.uint8]:
        readers.add(threading.current_thread().name)
        return honest(picture)

    monkeypatch.setattr(np, "asarray", noted)
    names = [f"{index}.png" for index in range(count)]
    folder = photographs(tmp_path / "photos", *names)
    files = [str(folder / name) for name in names]
    batches: list[NDArray[np.uint8]] = []

    def run(batch: NDArray[np.uint8]) -> NDArray[np.uint8]:
        batches.append(batch)
        return batch[..., 0]

    total, of_run, class_maps = loop["drawn"](run, (32, 24), files)
    assert total >= of_run
    assert class_maps.shape == (count, 24, 32)
    for file, picture in zip(files, batches[0], strict=True):
        assert np.array_equal(picture, images.to_network_size(images.read(file), height=24, width=32))
    assert any(name != "MainThread" for name in readers) == (count > 1)


def test_every_peer_is_given_as_many_threads_as_we_take(loop: dict[str, Any]) -> None:
    assert loop["cores"]() == len(os.sched_getaffinity(0))
    for peer, said in (
        ("onnxruntime_numpy", "intra_op_num_threads = cores()"),
        ("openvino_numpy", '"INFERENCE_NUM_THREADS": cores()'),
        ("torch_pillow", "torch.set_num_threads(cores())"),
    ):
        assert said in LOOP.with_name(f"{peer}.py").read_text(encoding="utf-8")
