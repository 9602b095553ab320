"""Optimization profiles: their text form, and which sizes they allow."""

import pytest

from funnel_export.errors import SpecError
from funnel_export.spec.profile import SINGLE_PASS, Profile, Range, fitting_profiles


def test_text_and_json_round_trip() -> None:
    for text in ("default:batch=1:1:8,sequence=16:512:4096", "chat:batch=1:2:4,sequence=1:1:1"):
        assert str(Profile.parse(text)) == text
        assert Profile.model_validate_json(Profile.parse(text).model_dump_json()) == Profile.parse(text)


def test_a_single_size_and_any_order_of_axes_are_accepted() -> None:
    assert str(Profile.parse("sequence=128,batch=2")) == "default:batch=2:2:2,sequence=128:128:128"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "batch=1",
        "batch=1,sequence=1,past=1",
        "batch=1,batch=1,sequence=2",
        "batch=1:2,sequence=3",
        "batch=1:2:3:4,sequence=3",
        "batch=3:2:1,sequence=1",
        "batch=0,sequence=1",
        "batch=1,sequence=-1",
        "batch=1,sequence=:::",
        "batch=1,sequence=2000000",
        "batch=1,sequence=" + "9" * 5000,
        "a b:batch=1,sequence=1",
        "x" * 65 + ":batch=1,sequence=1",
        "batch=1sequence=2",
        "batch=" + "111111=1" * 200 + "!",
    ],
)
def test_invalid_profiles_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(SpecError, match="--profile batch=1:1:8,sequence=16:512:4096"):
        Profile.parse(text)


def test_ranges_are_validated_on_construction() -> None:
    with pytest.raises(ValueError, match="min <= opt <= max: 4:1:1"):
        Range(min=4, opt=1, max=1)


def test_the_profile_tuned_for_the_nearest_length_comes_first() -> None:
    profiles = [Profile.parse(f"p{opt}:batch=1:1:4,sequence=1:{opt}:1024") for opt in (1, 512, 128)]
    wanted = {(1, 200): [2, 0, 1], (4, 1): [0, 2, 1], (5, 1): [], (1, 1025): []}
    for shape, numbers in wanted.items():
        assert fitting_profiles(profiles, dict(zip(SINGLE_PASS, shape, strict=True))) == numbers
