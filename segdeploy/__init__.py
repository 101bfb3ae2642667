"""Semantic segmentation, deployed. `segdeploy.open("unet").segment(photo)`; `segdeploy.making` has the verbs."""

from typing import TYPE_CHECKING, Any

from segdeploy._version import __version__ as __version__

if TYPE_CHECKING:
    from segdeploy.making import open as open  # noqa: A004 - the verb, re-exported


def __getattr__(name: str) -> Any:  # noqa: ANN401 - loaded when it is asked for: `import segdeploy` stays light
    if name == "open":
        from segdeploy import making

        return making.open
    raise AttributeError(f"module 'segdeploy' has no attribute {name!r}")
