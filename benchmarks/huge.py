"""Measure `infer` on images too large for memory, and what tiles change; writes huge.json and huge.md.

    python benchmarks/huge.py memory [--side 20000] [--work DIR]
    python benchmarks/huge.py sparse [--side 100000] [--work DIR]
    python benchmarks/huge.py seams

`memory`: an image made of `examples/nuclei`, as tiled and striped TIFF, PNG and JPEG, by the packaged U-Net in int8,
stretched and in tiles: the peak memory of each process, and its seconds. `sparse`: a tiled TIFF of which nearly all
blocks are empty, in tiles. `seams`: of the packaged networks in PyTorch, the pixels in which the class map of an image
in tiles is that of the whole image as one input, with several overlaps, on images put together of `examples/nuclei`.
Each part replaces its own table.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy import fitting, images, models, workspace
from segdeploy.checkpoints import checkpoint
from segdeploy.timing import machine

HERE = Path(__file__).parent
NETWORKS = ("segnet", "unet", "pspnet", "deeplabv3")
SIDE = 1024  # of the images that are seen whole
OVERLAPS = (0, 16, 32)
MOSAICS, PART = 6, 256  # images, and pixels a side of the packaged pieces that each is made of
ENGINE = ("--model", "unet", "--engine", "ort:int8")


# Memory


def memory(side: int, work: Path) -> dict[str, Any]:
    """Peak memory and seconds for each kind of file and each fit."""
    files = _files(work / f"photos-{side}", side)
    _exported(work)
    rows = [{"file": file.name, "fit": fit, **_infer(file, fit, work)} for fit in ("stretch", "tile") for file in files]
    return {"side": side, "rows": rows}


def _files(folder: Path, side: int) -> list[Path]:
    import pyvips

    kinds: dict[str, dict[str, Any]] = {
        "tiled.tif": {"tile": True, "compression": "deflate", "bigtiff": True},
        "striped.tif": {"bigtiff": True},
        "large.png": {"compression": 1},
        "large.jpg": {"Q": 90},
    }
    folder.mkdir(parents=True, exist_ok=True)
    seed = pyvips.Image.new_from_file(str(workspace.packaged_images()[0]))[:3]
    whole = seed.replicate(side // seed.width + 1, side // seed.height + 1).crop(0, 0, side, side)
    for name, how in kinds.items():
        if not (folder / name).exists():
            whole.write_to_file(str(folder / name), **how)
    return [folder / name for name in kinds]


def _exported(work: Path) -> None:
    if not (work / "export").is_dir():
        _segdeploy("export", "--model", "unet", "--precision", "int8", work=work)


def _infer(file: Path, fit: str, work: Path) -> dict[str, float]:
    """`peak_mb` and `seconds` of one image, by the command."""
    out = work / "masks" / fit
    started = time.monotonic()
    peak_mb = _segdeploy("infer", str(file), "--out", str(out), "--fit", fit, "--again", *ENGINE, work=work)
    return {"peak_mb": peak_mb, "seconds": time.monotonic() - started}


def _segdeploy(*arguments: str, work: Path) -> float:
    """Run the command in `work`; its peak memory in MB."""
    command = subprocess.Popen([sys.executable, "-m", "segdeploy", *arguments], cwd=work)
    peak = [0.0]

    def watch() -> None:
        status = Path(f"/proc/{command.pid}/status")
        while command.poll() is None:
            for line in status.read_text().splitlines():
                if line.startswith("VmHWM"):
                    peak[0] = max(peak[0], int(line.split()[1]) / 1024)
            time.sleep(0.05)

    watching = threading.Thread(target=watch)
    watching.start()
    command.wait()
    watching.join()
    if command.returncode:
        raise SystemExit(f"segdeploy {' '.join(arguments)} failed")
    return peak[0]


# Nearly empty


def sparse(side: int, work: Path) -> dict[str, Any]:
    """An image of which a few blocks are stored, in tiles."""
    file = work / f"sparse-{side}.tif"
    if not file.exists():
        _sparse(file, side)
    _exported(work)
    return {"side": side, "stored_mb": file.stat().st_size / 1e6, **_infer(file, "tile", work)}


def _sparse(file: Path, side: int) -> None:
    import rasterio
    from rasterio.windows import Window

    seed = images.read(workspace.packaged_images()[0]).transpose(2, 0, 1)
    _, height, width = seed.shape
    about = {"height": side, "width": side, "count": 3, "dtype": "uint8", "photometric": "rgb", "interleave": "pixel"}
    stored = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "sparse_ok": True}
    place = {"crs": "EPSG:32632", "transform": rasterio.Affine(1, 0, 400_000, 0, -1, 5_000_000)}
    with rasterio.open(file, "w", driver="GTiff", bigtiff="yes", **about, **stored, **place) as made:
        for top, left in ((side // 100, side // 100), (side // 2, side // 3 * 2), (side - height, side - width)):
            made.write(seed, window=Window(left, top, width, height))


# Seams


def seams() -> dict[str, Any]:
    """The share of pixels that agree, of each network with each overlap, and the worst image's."""
    photos = list(_mosaics())
    return {"images": len(photos), "rows": [row for name in NETWORKS for row in _agreements(name, photos)]}


def _mosaics() -> Iterator[NDArray[np.uint8]]:
    """Images put together of the middles of packaged ones, in another order each."""
    parts = [images.read(file) for file in workspace.packaged_images()]
    middles = [_middle(part) for part in parts if min(part.shape[:2]) >= PART]
    for seed in range(MOSAICS):
        order = np.random.default_rng(seed).integers(0, len(middles), (SIDE // PART, SIDE // PART))
        yield np.concatenate([np.concatenate([middles[index] for index in row], axis=1) for row in order])


def _middle(photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    top, left = ((side - PART) // 2 for side in photo.shape[:2])
    return photo[top : top + PART, left : left + PART]


def _agreements(name: str, photos: Sequence[NDArray[np.uint8]]) -> list[dict[str, Any]]:
    import torch

    network, spec = checkpoint.load(workspace.PACKAGED / f"{name}.safetensors")
    deployed = models.deployed(network, spec).eval()

    def classify(batch: NDArray[np.uint8]) -> NDArray[np.uint8]:
        with torch.inference_mode():
            drawn: NDArray[np.uint8] = deployed(torch.from_numpy(np.ascontiguousarray(batch))).numpy()
        return drawn

    found: dict[int, list[float]] = {overlap: [] for overlap in OVERLAPS}
    objects = []
    for photo in photos:
        whole = classify(photo[None])[0]
        objects.append(float(np.mean(whole > 0)))
        for overlap, agreements in found.items():
            tiled = fitting.drawn(photo, fitting.with_fit(spec, "tile", overlap), classify)
            agreements.append(float(np.mean(tiled == whole)))
    about = {"network": name, "tile": f"{spec.height}x{spec.width}", "objects": float(np.mean(objects))}
    return [
        {**about, "overlap": overlap, "mean": float(np.mean(each)), "worst": min(each)}
        for overlap, each in found.items()
    ]


# The page


def _page(found: dict[str, Any]) -> str:
    """Every part that was measured, each with the machine it was measured on."""
    lines = ["# Images too large for memory", ""]
    for part, write in (("memory", _memory_lines), ("sparse", _sparse_lines), ("seams", _seam_lines)):
        if part in found:
            lines += [f"`python benchmarks/huge.py {part}` on {found[part]['machine']}.", "", *write(found[part]), ""]
    return "\n".join(lines)


def _memory_lines(part: dict[str, Any]) -> Iterator[str]:
    yield f"{part['side']:,} x {part['side']:,} pixels, the packaged U-Net in int8; seconds of the whole command."
    yield from ("", "| file | fit | peak memory, MB | seconds |", "|---|---|---|---|")
    for row in part["rows"]:
        yield f"| {row['file']} | {row['fit']} | {row['peak_mb']:.0f} | {row['seconds']:.0f} |"


def _sparse_lines(part: dict[str, Any]) -> Iterator[str]:
    yield f"A tiled TIFF of {part['side']:,} x {part['side']:,} pixels of which {part['stored_mb']:.1f} MB are stored;"
    yield f"tiles of one colour are computed once: {part['peak_mb']:.0f} MB, {part['seconds']:.0f} s."


def _seam_lines(part: dict[str, Any]) -> Iterator[str]:
    yield f"Tiles against the whole image as one input, on {part['images']} of {SIDE}x{SIDE}: pixels that agree in %."
    yield "PSPNet and DeepLabv3 pool over all they see: a tile is another image to them."
    yield from ("", "| network | objects, % | tile | overlap | mean | worst image |", "|---|---|---|---|---|---|")
    for row in part["rows"]:
        shares = f"{100 * row['mean']:.3f} | {100 * row['worst']:.3f}"
        yield f"| {row['network']} | {100 * row['objects']:.1f} | {row['tile']} | {row['overlap']} | {shares} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["memory", "sparse", "seams"])
    parser.add_argument("--side", type=int)
    parser.add_argument("--work", type=Path)
    given = parser.parse_args()
    document = HERE / "huge.json"
    found: dict[str, Any] = json.loads(document.read_text()) if document.exists() else {}
    with tempfile.TemporaryDirectory() as temporary:
        work = (given.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        if given.part == "seams":
            found["seams"] = seams()
        else:
            part = memory if given.part == "memory" else sparse
            found[given.part] = part(given.side or (20_000 if given.part == "memory" else 100_000), work)
    found[given.part]["machine"] = machine.describe().named
    document.write_text(json.dumps(found, indent=1) + "\n")
    document.with_suffix(".md").write_text(_page(found))


if __name__ == "__main__":
    main()
