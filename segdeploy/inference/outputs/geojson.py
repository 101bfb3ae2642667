"""The regions of an image as polygons along the sides of pixels, one GeoJSON file an image (RFC 7946).

A Feature is a region: pixels of one class that are connected by their sides, as GDAL's polygonize gives them. Whoever
wants one shape a class dissolves them by `class_index`; to part such a shape would be harder.
"""

import json
from typing import Any

from segdeploy.inference import outlines
from segdeploy.inference.outputs._base import Segmented

SUFFIX = ".geojson"
SHOWS_PHOTO = False
# RFC 7946 has longitude and latitude, and others for those who agree on them. This says which, in WKT (ISO 19162): GDAL
# reads it, and without it takes the numbers for degrees.
PIXELS = (
    'ENGCRS["pixels of the photo",EDATUM["upper left corner of the upper left pixel"],CS[Cartesian,2],'
    'AXIS["to the right (x)",east],AXIS["downward (y)",south],LENGTHUNIT["pixel",1]]'
)
_text = json.JSONEncoder(separators=(",", ":")).encode


def encode(segmented: Segmented) -> bytes:
    """A FeatureCollection of Polygons, with the size of the photo. Together they cover each of its pixels once.

    By the numbers, outlines go counterclockwise and holes clockwise, as RFC 7946 asks; y downward mirrors that.
    """
    height, width = segmented.class_map.shape
    crs = {"type": "name", "properties": {"name": PIXELS}}
    about = {"type": "FeatureCollection", "crs": crs, "width": width, "height": height}
    # One by one: as lists, all corners of a noisy image would take gigabytes.
    features = ",".join(_text(_feature(region, segmented)) for region in outlines.regions(segmented.class_map))
    return f'{_text(about)[:-1]},"features":[{features}]}}\n'.encode()


def _feature(region: outlines.Region, segmented: Segmented) -> dict[str, Any]:
    name, colour = segmented.spec.classes[region.index], segmented.spec.colours[region.index]
    rings = [ring.tolist() for ring in region.rings]
    return {
        "type": "Feature",
        "properties": {
            "class_index": region.index,
            "class_name": name,
            "colour": segmented.colour(region.index),
            "area_px": region.area,
            "classification": {"name": name, "color": colour},  # where QuPath looks for them
        },
        "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]] for ring in rings]},
    }
