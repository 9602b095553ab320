"""The parity gate refuses small errors, and each of its limits refuses on its own."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from breaks import broken
from exported import Recipe
from near_twins import (
    TARGETS,
    Change,
    copied_bundle,
    copies_first,
    epsilon,
    one_logit,
    quiet_bundle,
    rounded,
    shifted_logits,
    softcap,
    zigzag,
)
from tiers import LONG, slow, slow_but

from funnel_export import Bundle
from funnel_export.commands.check import compare
from funnel_export.verify.parity_report import ParityReport

LIMITS = {"max_rel": "limit_max_rel", "rms_rel": "limit_rms_rel", "kl": "limit_kl"}


def wide_bundle() -> Bundle:
    return Recipe(dtype="bfloat16").bundle()


@dataclass(frozen=True)
class Twin:
    """A change of a bundle, a size at which it must be refused, and one at which it must pass."""

    bundle: Callable[[], Bundle]
    make: Callable[[Any], Change]
    wrong: Any
    sound: Any


TWINS = {
    "softcap float32": Twin(quiet_bundle, softcap, 1.01, 1.0),
    "epsilon float32": Twin(Recipe().bundle, epsilon, 1e-4, 1e-6),
    "rounded float32": Twin(quiet_bundle, rounded, ir.DataType.BFLOAT16, ir.DataType.FLOAT),
    "softcap bfloat16": Twin(wide_bundle, softcap, 1.3, 1.01),
    "epsilon bfloat16": Twin(wide_bundle, epsilon, 1.5, 1e-6),
    "rounded bfloat16": Twin(wide_bundle, rounded, ir.DataType.FLOAT8E5M2, ir.DataType.BFLOAT16),
}
"""In bfloat16, a softcap that is 1 % off and an epsilon of 0.1 are below the noise floor."""


def excesses(report: ParityReport) -> list[dict[str, float]]:
    """For each target, the worst of each error divided by its limit."""
    return [
        {
            name: max(getattr(case.metrics, name) for case in target.cases) / getattr(report, limit)
            for name, limit in LIMITS.items()
        }
        for target in report.targets
    ]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("epsilon float32", marks=LONG),
        *slow_but(("softcap float32", "epsilon bfloat16"), (name for name in TWINS if name != "epsilon float32")),
    ],
)
def test_small_errors_are_refused(name: str, tmp_path: Path) -> None:
    """In bfloat16 they exceed only half the limit of their boundary, which is named all the same."""
    twin = TWINS[name]
    bundle = twin.bundle()
    for size, passed in ((twin.wrong, False), (twin.sound, True)):
        folder = tmp_path / str(passed)
        folder.mkdir()
        # So near the limits, the tokens decide: with some seeds, the noise floor hides a change in bfloat16.
        report = compare(broken(bundle, folder, twin.make(size)), targets=TARGETS[bundle.spec.dtype], seed=2)
        assert [target.passed for target in report.targets] == [passed] * len(report.targets)
        places = [None if place is None else place.name for place in (each.first_difference for each in report.targets)]
        assert places == [None if passed else "layers.2"] * len(report.targets)
        for excess in excesses(report):
            worst = max(excess.values())
            assert worst <= 1 if passed else 1 < worst < 5


ONLY: list[tuple[str, str, Callable[[float], Change], float]] = [
    ("float32", "max_rel", one_logit, 4.5),
    ("float32", "rms_rel", shifted_logits, 1.0),
    ("float32", "kl", zigzag, 1.5),
    ("bfloat16", "max_rel", one_logit, 4.5),
    ("bfloat16", "rms_rel", shifted_logits, 0.8),
    ("bfloat16", "kl", zigzag, 0.8),
]
"""Dtype, the only limit that must be exceeded, change, and its size as a multiple of eager PyTorch's largest error."""
SLOW = [("float32", "kl"), ("bfloat16", "max_rel"), ("bfloat16", "rms_rel")]


@functools.cache
def sound_report(dtype: str) -> ParityReport:
    """The report of the unchanged bundle."""
    return compare(Recipe(dtype=dtype).bundle(), targets=TARGETS[dtype], lengths=[64])


@pytest.mark.parametrize(
    ("dtype", "limit", "make", "size"),
    [slow(*one) if one[:2] in SLOW else one for one in ONLY],
    ids=[f"{dtype} {limit}" for dtype, limit, *_ in ONLY],
)
def test_each_limit_refuses_on_its_own(
    dtype: str, limit: str, make: Callable[[float], Change], size: float, tmp_path: Path
) -> None:
    sound = sound_report(dtype)
    assert sound.passed
    twin = broken(Recipe(dtype=dtype).bundle(), tmp_path, make(size * sound.floor.max_abs))
    report = compare(twin, targets=TARGETS[dtype], lengths=[64])
    assert not report.passed
    for target, excess in zip(report.targets, excesses(report), strict=True):
        assert not target.passed
        assert [name for name, times in excess.items() if times > 1] == [limit]
        assert excess[limit] < 5
        assert target.top1 is not None
        assert target.top1 >= (report.limit_top1 or 1), "the limit of the highest logits is tested below"


def test_the_limit_of_the_highest_logits_refuses_on_its_own(tmp_path: Path) -> None:
    """Every token has a copy with the same logit; raising the copies by half the noise is within every other limit."""
    bundle = copied_bundle()
    sound = compare(bundle, targets=["onnxruntime"])
    assert sound.passed
    report = compare(broken(bundle, tmp_path, copies_first(sound.floor.max_abs / 2)), targets=["onnxruntime"])
    (target,) = report.targets
    assert not target.passed
    assert all(case.passed for case in target.cases)
    assert max(excesses(report)[0].values()) <= 1
    assert target.top1 is not None
    assert report.limit_top1 is not None
    assert target.top1 < 0.5 < report.limit_top1
