"""Boundaries: reported for every target that can output them, passed or not; a check never fails for lack of them."""

from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from breaks import broken
from exported import Recipe

from funnel_export.commands.check import compare
from funnel_export.errors import TargetRefusedError
from funnel_export.targets.onnxruntime import OnnxRuntimeTarget
from funnel_export.verify import boundaries, parity
from funnel_export.verify.boundaries import LONGEST, choose_case
from funnel_export.verify.cases import Case

pytestmark = pytest.mark.references

NAMES = ["layers.0", "funnel.pooled", "layers.1", "layers.2", "funnel.recovered", "layers.3"]


@pytest.mark.parametrize("funnel", [Recipe().funnel, None], ids=["funnel", "dense"])
def test_targets_that_pass_have_boundaries_too(funnel: Any) -> None:
    report = compare(Recipe(funnel=funnel).bundle(), max_length=6)
    wanted = NAMES if funnel else [name for name in NAMES if "funnel" not in name]
    assert report.passed
    for target in report.targets:
        assert [place.name for place in target.boundaries] == wanted
        assert {place.case for place in target.boundaries} == {"1x6"}
        assert all(place.passed and place.floor is not None for place in target.boundaries)
        assert target.first_difference is None
        assert target.boundaries_missing is None


def test_eager_runs_with_boundaries_once_for_all_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Counted(boundaries.Eager):
        def __init__(self, *arguments: Any) -> None:
            made.append(arguments)
            super().__init__(*arguments)

    monkeypatch.setattr(parity, "Eager", Counted)
    monkeypatch.setattr(boundaries, "Eager", Counted)
    assert len(compare(Recipe().bundle(), max_length=3).targets) == 2
    assert len(made) == 2  # the reference, and the bundle's dtype


def test_a_failure_shows_all_boundaries_of_the_failed_batch(tmp_path: Path) -> None:
    def scaled(model: ir.Model) -> None:
        tanh = next(n for n in model.graph if str(n.name).startswith("layers.2/") and n.op_type == "Tanh")
        tanh.op_type = "Sin"

    (result,) = compare(broken(Recipe().bundle(), tmp_path, scaled), targets=["onnxruntime"], max_length=6).targets
    failed = next(case.case for case in result.cases if not case.passed)
    assert [place.name for place in result.boundaries] == NAMES
    assert {place.case for place in result.boundaries} == {failed}
    assert result.first_difference == next(place for place in result.boundaries if not place.passed)
    assert result.first_difference.name == "layers.2"


def test_a_target_without_inner_values_still_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    load = OnnxRuntimeTarget.load

    def refuse(self: Any, bundle: Any, *, outputs: Any = (), engine: Any = None, **options: Any) -> Any:
        if outputs:
            raise TargetRefusedError("no inner values here")
        return load(self, bundle, engine=engine, **options)

    monkeypatch.setattr(OnnxRuntimeTarget, "load", refuse)
    (result,) = compare(Recipe().bundle(), targets=["onnxruntime"], max_length=3).targets
    assert result.passed
    assert result.error is None
    assert result.boundaries == []
    assert result.boundaries_missing == "no inner values here"


def test_no_engine_is_built_for_a_target_that_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxRuntimeTarget, "runs_graphs", False)
    bundle = Recipe().bundle()
    report = parity.check_parity(
        bundle,
        [parity.Candidate(OnnxRuntimeTarget())],
        parity.CasePlan((Case((3,)),), ()),
        progress=lambda *_: None,
    )
    assert report.passed
    assert report.targets[0].boundaries == []
    assert "built only on failure" in str(report.targets[0].boundaries_missing)


def test_the_longest_case_within_the_maximum_is_chosen() -> None:
    cases = [Case((1,)), Case((LONGEST,)), Case((LONGEST, 1)), Case((LONGEST + 1,)), Case((LONGEST // 2,) * 2)]
    assert choose_case(cases) == 1
    assert choose_case([Case((LONGEST + 1,))]) is None
