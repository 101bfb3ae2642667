"""Palette PNGs, written for class maps, whose rows are mostly those above (PNG, third edition, sections 9 and 10)."""

import io
import struct
import zlib
from collections.abc import Sequence
from typing import IO

import numpy as np
from numpy.typing import NDArray
from zlib_ng import zlib_ng

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_DEPTH, _PALETTE_COLOUR, _UP = 8, 3, 2
_LONGEST_CHUNK = 2**22  # bytes of pixel data
_LEVEL, _WINDOW_BITS, _MEMORY_LEVEL = 1, 15, 9


def palette_png(indices: NDArray[np.uint8], palette: NDArray[np.uint8], texts: Sequence[tuple[str, str]] = ()) -> bytes:
    """The bytes of a PNG whose pixels are `indices` (H, W) into `palette` (256, 3), in 8 bits; `texts` are Latin-1."""
    file = io.BytesIO()
    height, width = indices.shape
    writer = PaletteWriter(file, height, width, palette, texts)
    writer.write(indices)
    writer.end()
    return file.getvalue()


class PaletteWriter:
    """The same, given from the top down, some rows at once; `end` after the last.

    Each row is stored as its difference to the one above, so what repeats downward is zeros, and compressed by runs.
    """

    def __init__(
        self,
        file: IO[bytes],
        height: int,
        width: int,
        palette: NDArray[np.uint8],
        texts: Sequence[tuple[str, str]] = (),
    ) -> None:
        self._file = file
        self._above = np.zeros((1, width), np.uint8)
        self._compressor = zlib_ng.compressobj(_LEVEL, zlib_ng.DEFLATED, _WINDOW_BITS, _MEMORY_LEVEL, zlib_ng.Z_RLE)
        self._data = bytearray()
        header = struct.pack(">IIBBBBB", width, height, _DEPTH, _PALETTE_COLOUR, 0, 0, 0)
        said = [_chunk(b"tEXt", f"{key}\0{text}".encode("latin-1")) for key, text in texts]
        file.write(b"".join([_SIGNATURE, _chunk(b"IHDR", header), *said, _chunk(b"PLTE", palette.tobytes())]))

    def write(self, indices: NDArray[np.uint8]) -> None:
        """(h, width): the next rows."""
        height, width = indices.shape
        rows = np.empty((height, width + 1), np.uint8)
        rows[:, 0] = _UP
        np.subtract(indices[:1], self._above, out=rows[:1, 1:])
        np.subtract(indices[1:], indices[:-1], out=rows[1:, 1:])
        self._above = indices[-1:].copy()
        self._data += self._compressor.compress(rows)
        if len(self._data) > _LONGEST_CHUNK:
            self._flush()

    def end(self) -> None:
        self._data += self._compressor.flush()
        self._flush()
        self._file.write(_chunk(b"IEND", b""))

    def _flush(self) -> None:
        self._file.write(_chunk(b"IDAT", bytes(self._data)))
        self._data.clear()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))
