"""The cases of a check: their shapes, and reproducible tokens."""

from dataclasses import replace

import numpy as np
import pytest

from funnel_export import FunnelSpec
from funnel_export.bundle.ports import PortKind
from funnel_export.families.gemma2 import Gemma2Architecture
from funnel_export.spec.profile import Profile
from funnel_export.verify.cases import STEADY, Case, CasePlan, plan_cases, with_profiles, with_shapes

TINY = Gemma2Architecture(vocab_size=61, sliding_window=16)


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_lengths_around_the_stride_and_the_window(stride: int) -> None:
    plan = plan_cases(FunnelSpec.parse(f"1:3:{stride}"), {16})
    lengths = {case.lengths[0] for case in plan.cases if len(case.lengths) == 1}
    assert lengths >= {1, max(1, stride - 1), stride, stride + 1, 16, 17}
    ragged = [case for case in plan.cases if len(set(case.lengths)) > 1]
    assert {case.padding for case in ragged} == {"left", "right"}
    assert any(len(case.lengths) > 1 and len(set(case.lengths)) == 1 for case in plan.cases)


@pytest.mark.parametrize(("max_length", "longest"), [(None, STEADY), (STEADY, STEADY), (STEADY - 1, 5)])
def test_a_model_without_windows_is_compared_on_longer_rows_too(max_length: int | None, longest: int) -> None:
    plan = plan_cases(FunnelSpec.parse("1:3:2"), set(), max_length=max_length)
    assert max(case.shape[1] for case in plan.cases) == longest
    assert plan.left_out == ()


def test_compact_positions_are_checked_where_the_window_counts_slots() -> None:
    plan = plan_cases(FunnelSpec.parse("1:3:4", slot_positions="compact"), {16})
    assert max(max(case.lengths) for case in plan.cases) > 4 * 16


def test_additional_lengths_and_the_maximum() -> None:
    plan = plan_cases(None, {16}, lengths=[9, 100], max_length=20)
    assert (9,) in [case.lengths for case in plan.cases]
    assert plan.left_out == (100,)


@pytest.mark.parametrize(
    ("profile", "added"),
    [
        ("batch=1:1:4,sequence=1:8:64", []),
        ("batch=8,sequence=1:8:64", [(8,) * 8]),
        ("batch=2:4:8,sequence=1:8:12", [(8, 8)]),
        ("batch=8,sequence=1:40:64", [(20,) * 8]),
        ("batch=1,sequence=30:40:64", []),
    ],
    ids=["takes some", "many rows", "short batches", "optimum beyond the maximum", "longer rows only"],
)
def test_a_profile_that_takes_no_batch_adds_one(profile: str, added: list[tuple[int, ...]]) -> None:
    plan = plan_cases(None, {16}, max_length=20)
    assert with_profiles(plan, [Profile.parse(profile)], 20).cases == (*plan.cases, *map(Case, added))


def test_shapes_are_added_as_far_as_they_fit() -> None:
    plan = plan_cases(None, {16}, max_length=20)
    asked: list[tuple[int, int]] = []

    def fits(longer: CasePlan) -> bool:
        asked.append(longer.cases[-1].shape)
        return sum(len(case.lengths) for case in longer.cases[len(plan.cases) :]) <= 10

    found = with_shapes(plan, [(1, 16), (4, 9), (8, 9), (4, 9), (5, 7), (1, 21)], fits, 20)
    assert found.cases == (*plan.cases, Case((9,) * 4), Case((7,) * 5))
    assert asked == [(4, 9), (8, 9), (5, 7)], "not what is there, nor what is too long"


@pytest.mark.parametrize("padding", ["left", "right"])
def test_padding_is_on_the_given_side_only(padding: str) -> None:
    case = Case((1, 3, 5), padding)
    tokens = case.tokens(TINY, seed=0)
    assert tokens[PortKind.MASK].sum(1).tolist() == [1, 3, 5]
    assert ((tokens[PortKind.TOKENS] == 0) == (tokens[PortKind.MASK] == 0)).all()
    column = 0 if padding == "right" else -1
    assert tokens[PortKind.MASK][:, column].all()


def test_tokens_are_reproducible_from_the_seed() -> None:
    case = Case((7, 7))
    one, two, other = (case.tokens(TINY, seed)[PortKind.TOKENS] for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()
    assert one.max() <= 60


@pytest.mark.parametrize("padding", ["left", "right"])
def test_rows_begin_with_bos(padding: str) -> None:
    case = Case((1, 3, 5), padding, bos=True)
    with_bos, without = (each.tokens(TINY, seed=0)[PortKind.TOKENS] for each in (case, replace(case, bos=False)))
    for one, other, real in zip(with_bos, without, case.real, strict=True):
        assert one[real][0] == TINY.bos_token_id
        np.testing.assert_array_equal(one[real][1:], other[real][1:])
        np.testing.assert_array_equal(one[~real], 0)


@pytest.mark.parametrize("bos", [None, -1, 0, 61])
def test_a_token_that_is_no_bos_is_not_used(bos: int | None) -> None:
    """None, a token outside the vocabulary, or the padding."""
    architecture = TINY.model_copy(update={"bos_token_id": bos})
    one, other = (Case((1, 3), bos=each).tokens(architecture, seed=0)[PortKind.TOKENS] for each in (True, False))
    np.testing.assert_array_equal(one, other)


def test_only_ragged_rows_begin_with_bos() -> None:
    """Rows without BOS are needed too: it is the same token in every row, and it hides errors of other tokens."""
    for case in plan_cases(FunnelSpec.parse("1:3:2"), {16}).cases:
        assert case.bos is (len(set(case.lengths)) > 1)
