"""A class map as a tiled GeoTIFF, written in rows: palette, overviews, and the photograph's place on the map."""

import contextlib
import functools
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.inference.outputs import Huge, Segmented

TILE = 512  # pixels a side
SMALLEST = 256  # pixels: the longer side of the last overview, or less
_filters_lock = threading.Lock()  # filters of warnings are global


def encoded(segmented: Segmented) -> bytes:
    """The whole file of a class map that is in memory."""
    height, width = segmented.class_map.shape
    huge = Huge(height, width, segmented.spec, segmented.options, segmented.path or Path())
    with _rasterio().MemoryFile() as memory:
        writer = GeoTiffWriter(memory, huge)
        writer.write(segmented.class_map)
        writer.end()
        writer.close()
        data: bytes = memory.read()
    return data


@functools.cache
def _rasterio() -> Any:  # noqa: ANN401 - a module without types
    import rasterio
    import rasterio.errors
    import rasterio.io
    import rasterio.windows

    return rasterio


class GeoTiffWriter:
    """`target`: a path, or a file in memory."""

    def __init__(self, target: Any, huge: Huge) -> None:  # noqa: ANN401 - of rasterio
        rasterio = _rasterio()
        self._huge = huge
        self._window = rasterio.windows.Window
        self._row = 0
        self._waiting = np.empty((0, huge.width), np.uint8)
        about = {
            "driver": "GTiff",
            "height": huge.height,
            "width": huge.width,
            "count": 1,
            "dtype": "uint8",
            "tiled": True,
            "blockxsize": TILE,
            "blockysize": TILE,
            "compress": "deflate",
            "bigtiff": "if_safer",
            **_place(rasterio, huge.path),
        }
        in_memory = isinstance(target, rasterio.io.MemoryFile)
        with _quiet():
            self._file = target.open(**about) if in_memory else rasterio.open(target, "w", **about)
        self._file.write_colormap(1, {value: (*colour, 255) for value, colour in enumerate(huge.palette)})

    def write(self, class_map: NDArray[np.uint8], /) -> None:
        """Whole rows of tiles at once: none is compressed twice."""
        self._waiting = np.concatenate([self._waiting, self._huge.to_values(class_map)])
        self._put(len(self._waiting) // TILE * TILE)

    def _put(self, count: int) -> None:
        if count:
            window = self._window(0, self._row, self._huge.width, count)
            self._file.write(self._waiting[:count], 1, window=window)
            self._row += count
            self._waiting = self._waiting[count:]

    def end(self) -> None:
        self._put(len(self._waiting))
        longer = max(self._huge.height, self._huge.width)
        levels = [2**power for power in range(1, longer.bit_length()) if longer // 2**power >= SMALLEST]
        if levels:
            self._file.build_overviews(levels)  # by nearest neighbour: classes have no mean

    def close(self) -> None:
        self._file.close()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Most photographs have no place on the map, and rasterio warns of each."""
    with _filters_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", _rasterio().errors.NotGeoreferencedWarning)
        yield


def _place(rasterio: Any, path: Path) -> dict[str, Any]:  # noqa: ANN401 - of rasterio
    """Coordinate system and transform of a photograph that has them."""
    if path.suffix.lower() not in {".tif", ".tiff"}:
        return {}
    try:
        with _quiet():
            photo = rasterio.open(path)
        with photo:
            placed = not photo.transform.is_identity
            return {"crs": photo.crs, "transform": photo.transform} if placed else {}
    except rasterio.errors.RasterioIOError:
        return {}
