"""References that tests share: most checks of a session are of the same few checkpoints, and eager PyTorch is slow.

A reference depends on the checkpoint's files, the funnel and the cases, not on the graphs. Tests of the reference
itself have it computed anew by the marker `references`.
"""

import hashlib
from dataclasses import replace
from typing import Any

from funnel_export.bundle.load import Bundle
from funnel_export.progress import Progress
from funnel_export.verify import parity
from funnel_export.verify.cases import CasePlan

_expect = parity._expect
_KEPT: dict[str, tuple[parity._Expected, list[str]]] = {}
"""Results of eager PyTorch, and the steps that were shown meanwhile."""


def share_references() -> None:
    """Run eager PyTorch once for equal checkpoints, funnels and cases."""
    parity._expect = _expect_once


def compute_anew(monkeypatch: Any) -> None:
    """Run eager PyTorch in every check, for one test."""
    monkeypatch.setattr(parity, "_expect", _expect)


def _expect_once(bundle: Bundle, plan: CasePlan, seed: int, progress: Progress, *, inside: bool) -> parity._Expected:
    key = _key(bundle, plan, seed, inside)
    if key not in _KEPT:
        steps: list[str] = []
        _KEPT[key] = _expect(bundle, plan, seed, steps.append, inside=inside), steps
    expected, steps = _KEPT[key]
    for step in steps:
        progress(step)
    return replace(expected, insides=dict(expected.insides))  # a check adds the cases that fail


def _key(bundle: Bundle, *others: object) -> str:
    """A digest of all that a reference depends on: every file of the bundle but its manifest and graphs."""
    left_out = {"manifest.json", *(graph.path.name for graph in bundle.graphs.values())}
    files = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(bundle.path.iterdir())
        if path.is_file() and path.name not in left_out
    }
    what = [type(bundle.family), bundle.spec, bundle.architecture, files, *others]
    return hashlib.sha256(repr(what).encode()).hexdigest()
