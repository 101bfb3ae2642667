"""The class map as a tiled GeoTIFF: palette, overviews, and coordinate system and place of the photograph."""

from pathlib import Path

from segdeploy.inference import geotiff
from segdeploy.inference.outputs._base import Huge, Segmented

SUFFIX = ".tif"
SHOWS_PHOTO = False
OPTIONS = ("values",)
NEEDS = "rasterio"


def encode(segmented: Segmented) -> bytes:
    return geotiff.encoded(segmented)


def rows(path: Path, huge: Huge) -> geotiff.GeoTiffWriter:
    return geotiff.GeoTiffWriter(path, huge)
