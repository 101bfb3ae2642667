"""What `doctor` finds on this machine, and what to do about it."""

import pytest

import segdeploy
from segdeploy import engines
from segdeploy.timing import runtime_selection


def test_doctor_finds_two_packages_that_overwrite_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pip sees no conflict between onnxruntime and onnxruntime-gpu; the import is broken all the same."""
    monkeypatch.setattr(engines, "installed", list)
    found = segdeploy.doctor()
    (check,) = [check for check in found.checks if check.name == "engine ort"]
    assert found.clash
    assert check.clash
    assert not check.usable
    assert check.remedy is not None
    assert "pip uninstall" in check.remedy


def test_doctor_lists_every_engine_and_the_order_in_which_they_are_looked_for() -> None:
    found = segdeploy.doctor()
    assert {f"engine {name}" for name in engines.names()} <= {check.name for check in found.checks}
    assert all(check.usable or check.remedy for check in found.checks)
    expected = [(each.runtime, each.device, each.obstacle is None) for each in runtime_selection.candidates()]
    assert [(place.runtime, place.device, place.usable) for place in found.order] == expected
    assert all(place.usable == (place.reason is None) for place in found.order)
