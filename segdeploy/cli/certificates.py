"""A certificate as text: the verdict in a line, the stages in a table, and what the table has no room for."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from segdeploy.cli import rendering

if TYPE_CHECKING:
    from rich.table import Table

    from segdeploy.certificate import Certificate, Limits, Stage

MOST_NAMED = 3  # classes and images in a line; the JSON has all
LONGEST_NAME = 24


def verdict_line(certificate: "Certificate | None") -> str:
    """What was proven, on how many images; empty where nothing was."""
    if certificate is None:
        return ""
    verdict = "proven" if certificate.passed else f"NOT the same from {certificate.first_failing_stage} on"
    if certificate.passed and certificate.inconclusive is not None:
        verdict = "inconclusive, allowed" if certificate.inconclusive_allowed else "INCONCLUSIVE"
    if not certificate.gated:
        verdict = "measured, not judged (random weights)"
    images = "1 image" if certificate.images == 1 else f"{certificate.images} images"
    return f"{verdict}: {certificate.model} on {images}, to the {certificate.proven_to}"


def stage_table(certificate: "Certificate") -> "Table":
    """A row for each stage."""
    shares = ("agreement", "boundary", "interior", "near-ties", "unexplained")
    table = rendering.table("stage", "runtime", *shares, "edge F1", "mIoU", "verdict")
    for stage in certificate.stages:
        table.add_row(stage.name, *_cells(stage))
    return table


def _cells(stage: "Stage") -> list[str]:
    if stage.passed is None:
        return [*["-"] * 8, "not run"]
    shares = (
        stage.agreement,
        stage.boundary_agreement,
        stage.interior_agreement,
        stage.near_ties,
        stage.unexplained,
    )
    return [
        f"{stage.runtime} {stage.device}",
        *[rendering.number(share, ".4%") for share in shares],
        rendering.number(stage.boundary_f1, ".4f"),
        rendering.number(stage.miou_change, "+.4f"),
        "passed" if stage.passed else "FAILED",
    ]


def details(certificate: "Certificate") -> Iterator[str]:
    """What does not fit the table: reasons, the limits, the classes and images that changed most, the departure."""
    yield from (f"{stage.name}: {stage.reason}" for stage in certificate.stages if stage.reason)
    ran = [stage for stage in certificate.stages if stage.passed is not None]
    failing = [stage for stage in ran if not stage.passed]
    for stage in (failing or ran[-1:])[:1]:
        if stage.differing_pixels:
            yield f"{stage.name}, classes: {_most_changed_classes(stage)}"
            yield f"{stage.name}, worst images: {_worst_images(stage)}"
    yield f"limits: {_limits(certificate.limits)}"
    if certificate.inconclusive is not None:
        yield f"could not have failed: {certificate.inconclusive}"
    if certificate.selected_among > 1:
        yield f"selected among {certificate.selected_among} candidates on these same images"
    if (found := certificate.departure) is not None:
        yield f"{found.stage}, bisected on {_short_name(found.image)}: {found.text}"


def _limits(limits: "Limits") -> str:
    named = {
        "min agreement": limits.min_agreement,
        "max near ties": limits.max_near_ties,
        "max pool ties": limits.max_pool_ties,
        "max unexplained": limits.max_unexplained,
        "max drop": limits.max_drop,
    }
    return ", ".join(f"{name} {_decimal(value)}" for name, value in named.items() if value is not None)


def _most_changed_classes(stage: "Stage") -> str:
    """IoU with PyTorch's masks and, with labels, points of IoU against them."""
    changes = stage.miou_change_by_class or {}
    present = {name: iou for name, iou in (stage.class_agreement or {}).items() if iou is not None}
    named = []
    for name in sorted(present, key=present.__getitem__)[:MOST_NAMED]:
        change = changes.get(name)
        points = "" if change is None else f" ({change:+.3f} points)"
        named.append(f"{name} {present[name]:.4%}{points}")
    return ", ".join(named) + (", ..." if len(present) > MOST_NAMED else "")


def _worst_images(stage: "Stage") -> str:
    worst = stage.worst_images
    named = [f"{_short_name(each.image)} {each.agreement:.4%}" for each in worst[:MOST_NAMED]]
    return ", ".join(named) + (", ..." if len(worst) > MOST_NAMED else "")


def _short_name(name: str) -> str:
    """Of an image; a name that is a hash is known by its beginning."""
    stem, dot, suffix = name.rpartition(".")
    return name if len(name) <= LONGEST_NAME else f"{stem[: LONGEST_NAME - 8]}...{dot}{suffix}"


def _decimal(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")
