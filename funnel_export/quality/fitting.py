"""Fits the maps of recovery `linear` in closed form: ridge regression to the hidden states of the dense model.

Each class of tokens has a map of its own (`funnel_export.funnel.maps`). A token's row of the regression is what its map
takes, [x, out - in, 1] or [x, 1], and what the map should add to the recovery without it, so that the token has the
state of the dense model. Rows are divided by the norm of that state, as the next layer's norm divides it. The strength
of the ridge is the one with the least error on held-out texts.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from funnel_export.funnel.maps import DropMap, SlotMaps, make_maps
from funnel_export.quality.fit_report import MapReport
from funnel_export.quality.moments import Moments
from funnel_export.quality.states import States, read_states
from funnel_export.spec.funnel import FunnelSpec

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Strengths that are tried, as shares of each input's own sum of squares."""
CLOSED, STALE, REST = "closed", "stale", "rest"
"""Classes of tokens, and names of their maps."""


@dataclass(slots=True)
class _Sums:
    """What was seen of one part of the texts."""

    moments: dict[str, Moments] = field(default_factory=dict)
    first: list[Tensor] = field(default_factory=list)
    """What the constant of each text's first token should be."""

    def add(self, spec: FunnelSpec, states: States) -> None:
        base = states.before if states.change is None else states.before + states.change
        wanted, scale = states.after - base, 1 / states.after.norm(dim=-1, keepdim=True).clamp(min=1e-6)
        ones = torch.ones(len(wanted), 1)
        taken = [states.before, ones] if states.change is None else [states.before, states.change, ones]
        inputs, targets = torch.cat(taken, dim=-1) * scale, wanted * scale
        self.first.append(wanted[0])
        for name, mask in classes_of(spec, len(wanted)):
            if name not in self.moments:
                self.moments[name] = Moments(inputs.shape[1], targets.shape[1])
            self.moments[name].add(inputs[mask], targets[mask])


def classes_of(spec: FunnelSpec, length: int) -> Iterator[tuple[str, Tensor]]:
    """The classes of tokens that have a map, each with a mask, [length], of its tokens in a text of `length`."""
    numbers = torch.arange(length)
    if spec.drop:
        yield REST, numbers > 0
        return
    yield CLOSED, (numbers > 0) & (numbers % spec.stride == 0)
    yield STALE, numbers % spec.stride != 0


def fit_maps(
    model: Any, spec: FunnelSpec, texts: Iterable[Sequence[int]], held_out: Iterable[Sequence[int]]
) -> tuple[SlotMaps | DropMap, dict[str, MapReport]]:
    """Fit the maps of a funnel to a dense model.

    Args:
        model: a Hugging Face model without a funnel.
        spec: a funnel of recovery `linear`.
        texts: tokens of the texts to fit to.
        held_out: tokens of other texts, on which the strength of the ridge is chosen.

    Returns:
        The maps, in float32, and how each was fitted.
    """
    seen, checked = _Sums(), _Sums()
    for sums, part in ((seen, texts), (checked, held_out)):
        for ids in part:
            sums.add(spec, read_states(model, spec, ids))
    maps = make_maps(spec, model.config.hidden_size)
    assert maps is not None
    found = {}
    with torch.no_grad():
        for name, moments in seen.moments.items():
            solution, found[name] = _choose(moments, checked.moments[name], slots=not spec.drop)
            linear: Any = getattr(maps, name)
            linear.weight.copy_(solution[:-1].T)
            linear.bias.copy_(solution[-1])
        if isinstance(maps, DropMap):
            maps.first.copy_(torch.stack(seen.first).mean(dim=0))
    return maps, found


def _choose(moments: Moments, checked: Moments, *, slots: bool) -> tuple[Tensor, MapReport]:
    """The solution whose strength of the ridge has the least error on held-out tokens."""
    start = torch.zeros_like(moments.xy)
    if slots:  # pull towards the best multiple of the slot's change, which alone wins much of what is lost
        change = slice(moments.outputs, 2 * moments.outputs)
        squares = moments.xx[change, change].trace().clamp(min=1e-30)
        start[change] = torch.eye(moments.outputs, dtype=start.dtype) * (moments.xy[change].trace() / squares)
    solutions = {ridge: moments.solve(ridge, start) for ridge in RIDGES}
    errors = {ridge: checked.error(solution) for ridge, solution in solutions.items()}
    best = min(errors, key=errors.__getitem__)
    return solutions[best], MapReport(tokens=moments.rows, ridge=best, error=errors[best])
