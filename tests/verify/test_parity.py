"""The parity gate passes correct exports, refuses differing ones, and names the place."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from breaks import (
    another_softcap,
    broken,
    first_token_only,
    no_final_softcap,
    not_a_number,
    own,
    shifted_read_out,
    shifted_window,
    sine_for_tanh,
    swapped_masks,
    swapped_weights,
    unknown_op,
)
from exported import COMPACT, Recipe, with_weights
from tiers import LONG, slow

from funnel_export import Bundle, FunnelSpec, check
from funnel_export.commands.check import compare
from funnel_export.commands.compile import compile_bundle
from funnel_export.errors import FunnelExportWarning, SpecError, TargetUnavailableError
from funnel_export.spec.profile import Profile
from funnel_export.targets.openvino import OpenVinoTarget
from funnel_export.verify.candidates import Candidate
from funnel_export.verify.cases import CasePlan
from funnel_export.verify.parity_report import ParityReport
from funnel_export.verify.ranges import magnitude

BREAKS: dict[Callable[[ir.Model], None], str | None] = {
    swapped_masks: "layers.0",
    shifted_window: "funnel.pooled",
    not_a_number: "layers.1",
    another_softcap: "layers.2",
    shifted_read_out: "funnel.recovered",
    swapped_weights: "layers.3",
    no_final_softcap: None,
}


@pytest.mark.parametrize("break_", BREAKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_refuses_a_broken_graph_and_names_the_place(
    break_: Callable[[ir.Model], None], target: str, tmp_path: Path
) -> None:
    report = compare(broken(Recipe().bundle(), tmp_path, break_), targets=[target])
    assert not report.passed
    (result,) = report.targets
    assert not result.passed
    assert (result.first_difference.name if result.first_difference else None) == BREAKS[break_]


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        Recipe(funnel=None),
        Recipe(dtype="bfloat16"),
        pytest.param(Recipe(dtype="bfloat16", funnel=FunnelSpec.parse("1:3:2", pooling="max")), marks=LONG),
        slow(COMPACT),
    ],
    ids=["funnel", "dense", "bfloat16", "bfloat16 max", "compact"],
)
def test_passes_correct_exports(recipe: Recipe) -> None:
    report = compare(recipe.bundle(), lengths=[20])
    assert report.passed, report.model_dump_json(indent=1)
    assert [t.target for t in report.targets] == (
        ["openvino"] if recipe.dtype == "bfloat16" else ["onnxruntime", "openvino"]
    )
    assert not report.lengths_left_out


def test_the_report_is_written(tmp_path: Path) -> None:
    report = check(Recipe().bundle(), max_length=2, reports=tmp_path)
    stored = json.loads((tmp_path / "parity.json").read_text())
    assert ParityReport.model_validate(stored).targets == report.targets


def test_the_limit_is_derived_from_the_dtype() -> None:
    narrow, wide = compare(Recipe().bundle()), compare(Recipe(dtype="bfloat16").bundle())
    assert narrow.reference == "float64"
    assert wide.reference == "float32"
    assert narrow.limit_rms_rel < 1e-5 < 1e-3 < wide.limit_rms_rel < 0.2


def test_reports_what_was_left_out() -> None:
    report = compare(Recipe().bundle(), targets=["onnxruntime"], max_length=4)
    assert report.lengths_left_out == [5, 6, 8]
    assert {case.case.split("x")[1].split()[0] for case in report.targets[0].cases} == {"1", "2", "3"}


@pytest.mark.references
def test_the_same_seed_gives_the_same_errors() -> None:
    one, two, other = (compare(Recipe().bundle(), targets=["onnxruntime"], seed=seed).floor for seed in (1, 1, 2))
    assert one == two != other


def test_unknown_and_unavailable_targets_are_refused() -> None:
    with pytest.raises(SpecError, match="unknown target"):
        compare(Recipe().bundle(), targets=["nonesuch"])
    with pytest.raises(TargetUnavailableError, match="cannot run a bfloat16 graph here"):
        compare(Recipe(dtype="bfloat16").bundle(), targets=["onnxruntime"])


def test_the_reference_is_hugging_face_itself_for_a_dense_bundle() -> None:
    from funnel_export.verify.reference import Eager

    eager = Eager(Recipe(funnel=None).bundle(), torch.float32)
    assert "forward" not in eager.model.model.__dict__


def test_a_read_only_bundle_is_still_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, text: str) -> None:
        raise PermissionError(f"read-only: {path}")

    bundle = own(tmp_path)
    check(bundle, targets=["onnxruntime"], max_length=2)
    assert (bundle.path / "reports" / "parity.json").exists()
    monkeypatch.setattr("funnel_export.report.pages.write_text", refuse)  # root may write anywhere
    with pytest.warns(UserWarning, match="could not be kept in the bundle: read-only"):
        assert check(bundle, targets=["onnxruntime"], max_length=2).passed
    assert not list((bundle.path / "reports").iterdir()), "an earlier result could be mistaken for this one"


def test_a_file_named_reports_is_left_unchanged(tmp_path: Path) -> None:
    bundle = own(tmp_path)
    (bundle.path / "reports").write_text("mine")
    with pytest.warns(UserWarning, match="could not be kept in the bundle") as told:
        assert check(bundle, targets=["onnxruntime"], max_length=2).passed
    assert "earlier run" not in str(told[0].message)
    assert (bundle.path / "reports").read_text() == "mine"


def test_outputs_of_the_wrong_shape_fail(tmp_path: Path) -> None:
    report = compare(broken(Recipe().bundle(), tmp_path, first_token_only), max_length=3)
    assert not report.passed
    for result in report.targets:
        assert "an output has the wrong shape" in str(result.error)


def test_a_target_that_refuses_the_graph_does_not_stop_the_others(tmp_path: Path) -> None:
    report = compare(broken(Recipe().bundle(), tmp_path, unknown_op), max_length=3)
    assert not report.passed
    assert report.refused
    assert [result.target for result in report.targets] == ["onnxruntime", "openvino"]
    assert all("refused the graph" in str(result.error) for result in report.targets)


def overflowing(folder: Path, change: Callable[[ir.Model], None] | None) -> Bundle:
    """A float16 bundle whose logits overflow in eager PyTorch too, with its graph changed or as it was exported."""

    def enlarge(weights: dict[str, torch.Tensor]) -> None:
        weights["model.embed_tokens.weight"] *= 5e3

    recipe = Recipe(dtype="float16", overrides=(("final_logit_softcapping", None),))
    with pytest.warns(FunnelExportWarning, match="overflow in float16"):
        bundle = with_weights(recipe, enlarge)
    return bundle if change is None else broken(bundle, folder, change)


@pytest.mark.parametrize("change", [None, sine_for_tanh])
def test_nothing_passes_if_eager_overflows(change: Callable[[ir.Model], None] | None, tmp_path: Path) -> None:
    """A multiple of an infinite noise floor is not a limit."""
    report = compare(overflowing(tmp_path, change), targets=["onnxruntime"], max_length=4)
    assert np.isinf(report.floor.max_rel)
    assert not report.passed
    (result,) = report.targets
    assert not result.passed
    assert not any(case.passed for case in result.cases)
    logits = report.ranges[-1]
    assert logits.name == "lm_head"
    assert result.error == (
        f"eager PyTorch itself is not finite in float16 from lm_head on, where float32 has {magnitude(logits.largest)} "
        "and float16 at most 65,504, so no limit can be derived from it; export in bfloat16"
    )
    assert not report.refused


def test_a_factor_that_would_let_zeros_pass_lets_nothing_pass() -> None:
    report = compare(Recipe().bundle(), targets=["onnxruntime"], max_length=3, factor=1e9)
    assert not report.passed
    assert "would let zeros pass: the error of eager PyTorch in float32 is" in str(report.targets[0].error)
    assert "the factor is 1e+09" in str(report.targets[0].error)


@pytest.mark.parametrize("options", [{"lengths": [0]}, {"max_length": 0}, {"factor": 0.5}, {"factor": float("nan")}])
def test_invalid_options(options: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        compare(Recipe().bundle(), targets=["onnxruntime"], **options)


def test_a_check_that_would_not_fit_into_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("funnel_export.verify.parity.memory_bytes", lambda: 20_000_000)
    for logits, length in (("all", 500), ("last", 500)):  # outputs, and attention alone
        bundle = Recipe(logits=logits).bundle()
        with pytest.raises(SpecError, match="would not fit into memory") as refused:
            compare(bundle, targets=["onnxruntime"], lengths=[length])
        fits = int(refused.value.details["hint"].removeprefix("--max-length "))
        assert 8 <= fits < length
        assert compare(bundle, targets=["onnxruntime"], lengths=[length], max_length=fits).passed


def test_a_length_beyond_the_models_positions_is_refused() -> None:
    with pytest.raises(SpecError, match=r"(?s)exceeds max_position_embeddings.*length 100000.*at most 512 tokens"):
        compare(Recipe().bundle(), targets=["onnxruntime"], lengths=[100_000])


def test_no_batch_is_longer_than_the_models_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a profile of an engine nor a wide window makes one."""
    bundle = Recipe().bundle()
    wide = bundle.architecture.model_copy(update={"sliding_window": 1000})
    profiles = ["one:batch=1,sequence=600:700:800", "two:batch=4:4:8,sequence=1:100000:1000000"]
    parsed = [Profile.parse(each) for each in profiles]
    monkeypatch.setattr(Candidate, "profiles", parsed)
    plans: list[CasePlan] = []
    monkeypatch.setattr("funnel_export.verify.parity.check_parity", lambda _, __, plan, **___: plans.append(plan))
    compare(replace(bundle, architecture=wide), targets=["onnxruntime"])
    assert max(case.shape[1] for case in plans[0].cases) == 512
    assert plans[0].left_out == (1000, 1001, 1003)


def test_a_softcap_of_one() -> None:
    assert compare(Recipe(overrides=(("attn_logit_softcapping", 1.0),)).bundle(), targets=["onnxruntime"]).passed


def fail(*_: object, **__: object) -> None:
    raise RuntimeError("the plugin is broken")


@pytest.fixture
def compiled(tmp_path: Path) -> Bundle:
    """A bundle with an engine of OpenVINO."""
    bundle = own(tmp_path)
    compile_bundle(bundle, "openvino")
    return bundle


def test_a_runtime_that_fails_to_load_fails_only_its_own_results(
    compiled: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OpenVinoTarget, "load", fail)
    report = compare(compiled, max_length=3)
    errors = {target.name: target.error for target in report.targets}
    broken_error = "RuntimeError: the plugin is broken"
    assert errors == {"onnxruntime": None, "openvino": broken_error, "openvino-cpu": broken_error}
    assert not report.passed


def test_a_runtime_that_fails_to_inspect_an_engine_leaves_it_out(
    compiled: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OpenVinoTarget, "misfit", fail)
    with pytest.warns(FunnelExportWarning, match=r"(?s)left out: openvino failed to inspect.*the plugin is broken"):
        report = compare(compiled, max_length=3)
    assert [target.name for target in report.targets if target.passed] == ["onnxruntime", "openvino"]


def test_a_runtime_whose_availability_check_fails_is_unavailable(
    compiled: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OpenVinoTarget, "availability", fail)
    assert [target.name for target in compare(compiled, max_length=3).targets] == ["onnxruntime"]
    with pytest.raises(TargetUnavailableError, match="the plugin is broken"):
        compare(compiled, targets=["openvino"], max_length=3)
