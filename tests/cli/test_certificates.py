"""A certificate as text."""

import dataclasses
import io

from rich.console import Console

from segdeploy.certificate import Certificate, Departure, Limits, Stage, WorstImage, verdict
from segdeploy.cli import certificates
from segdeploy.spec import Precision

FAILED = Stage(
    name="engine",
    runtime="trt-rtx",
    device="cuda",
    passed=False,
    agreement=1.0,
    near_ties=1.0,
    unexplained=1.0,
    miou_change=-12.3,
    boundary_agreement=1.0,
    interior_agreement=1.0,
    boundary_f1=0.9,
)
FLOAT32 = Limits(min_agreement=0.9999, max_drop=0.05, max_near_ties=0.01, max_pool_ties=0.00002, max_unexplained=0.0)


def certificate(*stages: Stage, limits: Limits = FLOAT32, departure: Departure | None = None) -> Certificate:
    passed, first_failing_stage, proven_to = verdict(stages)
    return Certificate(
        model="unet",
        precision=Precision.FP32,
        form=None,
        weights="packaged",
        gated=True,
        passed=passed,
        first_failing_stage=first_failing_stage,
        proven_to=proven_to,
        images=3,
        stages=stages,
        limits=limits,
        departure=departure,
    )


def test_the_table_of_a_proof_fits_a_terminal() -> None:
    """Of 120 columns, with the longest runtime and every stage failed: a cut number is none."""
    names = ["fp32 graph", "graph", "engine"]
    shown = io.StringIO()
    found = certificate(*(dataclasses.replace(FAILED, name=name) for name in names))
    Console(file=shown, width=120).print(certificates.stage_table(found))
    lines = [line.strip() for line in shown.getvalue().splitlines() if line.strip()]
    assert [line.split("  ")[0].strip() for line in lines[2:]] == names
    for line in lines[2:]:
        assert line.count("100.0000%") == 5
        assert line.endswith("FAILED")
        assert "-12.3000" in line


def test_a_stage_that_did_not_run_has_a_row_and_its_reason() -> None:
    shown = io.StringIO()
    found = certificate(Stage(name="graph", passed=True), Stage(name="engine", reason="there is no GPU here"))
    Console(file=shown, width=120).print(certificates.stage_table(found))
    assert "not run" in shown.getvalue()
    assert "engine: there is no GPU here" in certificates.details(found)
    assert certificates.verdict_line(found) == "proven: unet on 3 images, to the graph"


def test_what_changed_most_is_named_of_the_failing_stage() -> None:
    """Three classes and images at most, the worst first, a long name by its beginning."""
    stage = dataclasses.replace(
        FAILED,
        differing_pixels=7,
        class_agreement={"sky": 0.5, "road": 0.25, "car": None},
        miou_change_by_class={"sky": -1.5, "road": None},
        worst_images=tuple(
            WorstImage(image=f"{index}{'a' * 40}.png", agreement=index / 10, differing_pixels=1, boundary_share=1.0)
            for index in range(4)
        ),
    )
    lines = list(certificates.details(certificate(stage)))
    assert lines[0] == "engine, classes: road 25.0000%, sky 50.0000% (-1.500 points)"
    assert lines[1].startswith(f"engine, worst images: 0{'a' * 15}....png 0.0000%, 1{'a' * 15}....png 10.0000%, 2")
    assert lines[1].endswith(", ...")


def test_the_limits_of_low_precision_are_those_that_it_has() -> None:
    found = certificate(FAILED, limits=Limits(min_agreement=0.98, max_drop=0.5))
    assert list(certificates.details(found)) == ["limits: min agreement 0.98, max drop 0.5"]
