"""The classes of an image as paths along the sides of pixels, one SVG file an image, in pixels of the photo."""

from collections.abc import Iterable, Iterator
from itertools import groupby, pairwise
from xml.sax.saxutils import escape

from segdeploy.inference import outlines
from segdeploy.inference.outlines import Ints
from segdeploy.inference.outputs._base import Segmented
from segdeploy.paths import shown

SUFFIX = ".svg"
SHOWS_PHOTO = False


def encode(segmented: Segmented) -> bytes:
    """A path for each class that occurs: `class-1`, in the colour of class 1 and with its name as the title."""
    return "\n".join(_lines(segmented)).encode()


def _lines(segmented: Segmented) -> Iterator[str]:
    height, width = segmented.class_map.shape
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    yield '<?xml version="1.0" encoding="UTF-8"?>'
    yield f'<svg xmlns="http://www.w3.org/2000/svg" {size} fill-rule="evenodd" shape-rendering="crispEdges">'
    for index, regions in groupby(outlines.regions(segmented.class_map), key=lambda region: region.index):
        drawn = _drawn(ring for region in regions for ring in region.rings)
        yield f'<path id="class-{index}" fill="{segmented.colour(index)}" d="{drawn}">'
        yield f"<title>{escape(shown(segmented.spec.classes[index]))}</title></path>"
    yield "</svg>\n"


def _drawn(rings: Iterable[Ints]) -> str:
    """Each from its first corner, by the differences; z draws its last side."""
    return "".join(f"M{x} {y}{_steps([(x, y), *others])}z" for (x, y), *others in (ring.tolist() for ring in rings))


def _steps(corners: Iterable[tuple[int, int]]) -> str:
    return "".join(f"h{x - x0}" if y == y0 else f"v{y - y0}" for (x0, y0), (x, y) in pairwise(corners))
