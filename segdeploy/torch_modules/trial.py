"""A module before it is exported: as it will run, at the size it is asked for, one image after another."""

import contextlib
import copy
import io
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.torch_modules import outputs
from segdeploy.torch_modules.archives import first_line, quiet

CHANNELS = (3, 1)
MULTIPLES = (8, 16, 32, 64)
MIXED = 1e-2  # of the range of an output: what arithmetic in another order never comes to
Size = tuple[int, int]


def prepared(module: nn.Module, named: str) -> tuple[nn.Module, tuple[str, ...]]:
    """A copy that computes in float32 on the CPU, in evaluation mode; and what of that is worth saying.

    A file's program runs as it was saved: it has no mode.
    """
    floats = {tensor.dtype for tensor in module.state_dict().values() if tensor.is_floating_point()}
    try:
        with quiet():
            taken = copied(module).cpu()
    except Exception as error:  # of the user's code
        raise InvalidFileError(
            f"{named} cannot be copied: {first_line(error)}.", "Detach the tensors that it keeps beside its weights."
        ) from error
    _out_of_training(taken)
    others = sorted(str(kind).removeprefix("torch.") for kind in floats - {torch.float32})
    notes = (f"its {' and '.join(others)} weights are taken as float32",) if others else ()
    return taken.float(), notes


def copied(module: nn.Module) -> nn.Module:
    """A copy with weights of its own; those of a TorchScript module would be no parameters in a deep copy."""
    if not isinstance(module, torch.jit.ScriptModule):
        return copy.deepcopy(module)
    content = io.BytesIO()
    torch.jit.save(module, content)
    content.seek(0)
    found: nn.Module = torch.jit.load(content, map_location="cpu")  # type: ignore[no-untyped-call] # torch's
    return found


def _out_of_training(module: nn.Module) -> None:
    """Dropout and normalisation as in use; a program of torch.export was traced in its mode."""
    with contextlib.suppress(NotImplementedError):
        module.eval()


def example(module: nn.Module, size: Size, named: str) -> Tensor:
    """(1, C, H, W): an image that the module takes, of 3 channels or of 1.

    Raise InvalidRequestError where it takes images, but not of this size, InvalidFileError where it takes none.
    """
    for channels in CHANNELS:
        if failure(module, noise(channels, size)) is None:
            return noise(channels, size)
    for multiple in MULTIPLES:
        height, width = (-(-side // multiple) * multiple for side in size)
        if (height, width) != size and failure(module, noise(CHANNELS[0], (height, width))) is None:
            raise InvalidRequestError(
                f"{named} cannot take {size[0]}x{size[1]} pixels.",
                f"Give a multiple of {multiple}: --size {height}x{width}",
            )
    reason = failure(module, noise(CHANNELS[0], size)) or "nothing comes out"
    raise InvalidFileError(
        f"{named} does not run on an image (1, 3, {size[0]}, {size[1]}): {reason}.",
        "Give another --size, or wrap it in a module that takes float32 (N, 3, H, W).",
    )


def failure(module: nn.Module, images: Tensor) -> str | None:
    """Why a module cannot take images; None where it gives a tensor."""
    try:
        with torch.no_grad():
            found = outputs.named(module(images))
    except Exception as error:  # noqa: BLE001 - of the user's code: any kind
        return f"{type(error).__name__}: {first_line(error)}"
    return None if found else "it gives no tensor"


def noise(channels: int, size: Size, count: int = 1) -> Tensor:
    """(count, channels, H, W), the same every time."""
    return torch.randn(count, channels, *size, generator=torch.Generator().manual_seed(0))


def require_steady(module: nn.Module, images: Tensor, named: str) -> None:
    """Raise InvalidFileError where a module draws something else every time, or for an image beside others.

    `images`: (N, C, H, W), different ones.
    """
    with torch.no_grad():
        alone = [outputs.named(module(image[None])) for image in images]
        again = outputs.named(module(images[:1]))
        if _differ([alone[0]], [again]):
            raise InvalidFileError(
                f"{named} gives something else every time: dropout or another random layer is active in it.",
                "Switch it off in evaluation mode: F.dropout(x, p, training=self.training)",
            )
        if failure(module, images) is None:
            _require_alone(alone, outputs.named(module(images)), named)


def _require_alone(alone: Sequence[dict[str, Tensor]], together: dict[str, Tensor], named: str) -> None:
    count = len(alone)
    apart = [{name: value[i : i + 1] for name, value in together.items()} for i in range(count)]
    if all(len(value) == count for value in together.values()) and _differ(alone, apart):
        raise InvalidFileError(
            f"{named} gives an image something else beside others: it mixes the images of a batch.",
            "Compute what it needs of each image alone (no statistics over the batch).",
        )


def _differ(ones: Sequence[dict[str, Tensor]], others: Sequence[dict[str, Tensor]]) -> bool:
    return any(_are_apart(one[name], other[name]) for one, other in zip(ones, others, strict=True) for name in one)


def _are_apart(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return True
    if not one.is_floating_point():
        return bool((one != other).float().mean() > MIXED)
    both = torch.stack([one, other]).double()
    finite = both[:, torch.isfinite(both).all(dim=0)]
    return bool(finite.numel() and (finite[0] - finite[1]).abs().max() > MIXED * (finite.max() - finite.min()))
