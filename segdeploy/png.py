"""Palette PNGs, written for class maps, whose rows are mostly those above (PNG, third edition, sections 9 and 10)."""

import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from zlib_ng import zlib_ng

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_DEPTH, _PALETTE_COLOUR, _UP = 8, 3, 2
_LEVEL, _WINDOW_BITS, _MEMORY_LEVEL = 1, 15, 9


def palette_png(indices: NDArray[np.uint8], palette: NDArray[np.uint8], texts: Sequence[tuple[str, str]] = ()) -> bytes:
    """The bytes of a PNG whose pixels are `indices` (H, W) into `palette` (256, 3), in 8 bits; `texts` are Latin-1.

    Each row is stored as its difference to the one above, so what repeats downward is zeros, and compressed by runs.
    """
    height, width = indices.shape
    header = struct.pack(">IIBBBBB", width, height, _DEPTH, _PALETTE_COLOUR, 0, 0, 0)
    said = [_chunk(b"tEXt", f"{key}\0{text}".encode("latin-1")) for key, text in texts]
    compressor = zlib_ng.compressobj(_LEVEL, zlib_ng.DEFLATED, _WINDOW_BITS, _MEMORY_LEVEL, zlib_ng.Z_RLE)
    data = compressor.compress(_filtered(indices)) + compressor.flush()
    chunks = [_chunk(b"IHDR", header), *said, _chunk(b"PLTE", palette.tobytes()), _chunk(b"IDAT", data)]
    return b"".join([_SIGNATURE, *chunks, _chunk(b"IEND", b"")])


def _filtered(indices: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W + 1): each row minus the row above, with the number of that filter in front."""
    height, width = indices.shape
    rows = np.empty((height, width + 1), np.uint8)
    rows[:, 0] = _UP
    rows[0, 1:] = indices[0]
    np.subtract(indices[1:], indices[:-1], out=rows[1:, 1:])
    return rows


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))
