"""The batch shapes on which a graph must agree with eager PyTorch, and seeded tokens for them."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from funnel_export.bundle.ports import PortKind
from funnel_export.families.architecture import Architecture
from funnel_export.spec.choices import Logits, SlotPositions
from funnel_export.spec.export import ExportSpec
from funnel_export.spec.funnel import FunnelSpec, boundary_names, layer_name, segments_of
from funnel_export.spec.profile import SINGLE_PASS, Profile


@dataclass(frozen=True, slots=True)
class Case:
    """A batch: the lengths of its rows, and the side on which they are padded."""

    lengths: tuple[int, ...]
    padding: str = "right"
    bos: bool = False
    """Whether rows begin with the model's BOS token, as texts do."""

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows, and tokens of a row including padding."""
        return len(self.lengths), max(self.lengths)

    @property
    def name(self) -> str:
        """For example `1x17`, `4x17 left 1,3,9,17`."""
        rows, longest = self.shape
        ragged = "" if len(set(self.lengths)) == 1 else f" {self.padding} {','.join(map(str, self.lengths))}"
        return f"{rows}x{longest}{ragged}"

    @property
    def real(self) -> NDArray[np.bool_]:
        """Mask of the real tokens, [batch, longest]."""
        column = np.arange(max(self.lengths))[None]
        length = np.array(self.lengths)[:, None]
        return column >= column.max() + 1 - length if self.padding == "left" else column < length

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes of a graph's axes."""
        return dict(zip(SINGLE_PASS, self.shape, strict=True))

    def tokens(self, architecture: Architecture, seed: int) -> dict[PortKind, NDArray[np.int64]]:
        """Token ids and mask, [batch, sequence], reproducible from the seed; padding is the model's pad token."""
        padding = max(0, architecture.pad_token_id or 0)
        generator = np.random.default_rng([seed, *self.lengths])
        ids = generator.integers(0, architecture.vocab_size - 1, size=self.real.shape)
        ids = ids + (ids >= padding)  # every token but the padding
        bos = architecture.bos_token_id
        if self.bos and bos is not None and 0 <= bos < architecture.vocab_size and bos != padding:
            ids[np.arange(len(ids)), self.real.argmax(axis=1)] = bos
        mask = self.real.astype(np.int64)
        return {PortKind.TOKENS: np.where(self.real, ids, padding).astype(np.int64), PortKind.MASK: mask}


STEADY = 64
"""Tokens of some rows of a model without sliding windows: with fewer positions, the noise floor is uncertain."""
LONG = 4000
"""Tokens of a text that is read in steps, or as many as the model takes: errors in a cache may grow with the length."""
KEPT = 64
"""Most positions of a row whose logits are compared after steps."""


def kept_positions(length: int) -> NDArray[np.int64]:
    """The positions of a row that are compared when it is read in steps: all, or `KEPT` with the last half of those."""
    if length <= KEPT:
        return np.arange(length)
    spread = np.linspace(0, length - KEPT // 2 - 1, KEPT - KEPT // 2).astype(np.int64)
    return np.concatenate([spread, np.arange(length - KEPT // 2, length)])


def compared_positions(spec: ExportSpec, length: int) -> int:
    """How many positions of a row are compared, at most."""
    if spec.task.has_past:
        return len(kept_positions(length))
    return 1 if spec.logits is Logits.LAST else length


def last_token_names(spec: ExportSpec, num_layers: int) -> frozenset[str]:
    """The boundaries that a single pass has for each row's last token only: a trimmed layer's, and those after it."""
    layer = None if spec.task.has_past else spec.trimmed_layer(num_layers)
    if layer is None:
        return frozenset()
    names = boundary_names(segments_of(spec.funnel, num_layers))
    return frozenset(names[names.index(layer_name(layer)) :])


@dataclass(frozen=True, slots=True)
class CasePlan:
    """The cases of one check, and the lengths that were left out as too long."""

    cases: tuple[Case, ...]
    left_out: tuple[int, ...]


def plan_cases(
    spec: FunnelSpec | None, windows: Collection[int], lengths: Sequence[int] = (), max_length: int | None = None
) -> CasePlan:
    """Cases where exports tend to fail: lengths around the stride and the sliding window, ragged rows, both paddings.

    For a model without windows, some rows have `STEADY` tokens. Ragged rows begin with BOS, whose hidden states are
    often far larger than those of other tokens.

    Args:
        spec: the funnel, None for a dense model.
        windows: sliding windows of the model's layers, in tokens.
        lengths: additional lengths, in tokens.
        max_length: leave out longer rows.
    """
    stride = spec.stride if spec is not None else 1
    wanted = {1, stride - 1, stride, stride + 1, 2 * stride + 1, *lengths}
    for window in windows:
        wanted |= {window, window + 1, window + stride + 1}
        if spec is not None and spec.slot_positions is SlotPositions.COMPACT:
            wanted |= {window * stride + stride + 1}  # with compact positions, the window counts slots
    if not windows and (max_length is None or max_length >= STEADY):
        wanted.add(STEADY)
    wanted.discard(0)
    kept = sorted(length for length in wanted if max_length is None or length <= max_length)
    longest = kept[-1]
    ragged = tuple(sorted({1, min(stride + 1, longest), max(1, longest - stride), longest}))
    cases = [Case((length,)) for length in kept]
    cases += [Case((longest,) * 2), Case(ragged, "left", bos=True), Case(ragged[::-1], "right", bos=True)]
    return CasePlan(tuple(cases), tuple(sorted(wanted - set(kept))))


def with_profiles(plan: CasePlan, profiles: Iterable[Profile], max_length: int | None = None) -> CasePlan:
    """The plan, with one more batch for each optimization profile that takes none of its cases.

    The batch has the profile's smallest batch size and its optimal length, or `max_length` if that is shorter. No batch
    is added if the profile takes only longer rows.
    """
    cases = list(plan.cases)
    for profile in profiles:
        batch, sequence = (profile.axes[axis] for axis in SINGLE_PASS)
        length = min(sequence.opt, max_length or sequence.opt)
        if length in sequence and not any(case.sizes in profile for case in cases):
            cases.append(Case((length,) * batch.min))
    return CasePlan(tuple(cases), plan.left_out)


def with_shapes(
    plan: CasePlan, shapes: Iterable[tuple[int, int]], fits: Callable[[CasePlan], bool], max_length: int | None = None
) -> CasePlan:
    """The plan, with one more batch without padding for each shape that none of its cases has.

    Args:
        plan: the plan.
        shapes: numbers of rows and tokens; the first ones go before later ones if not all fit.
        fits: whether a plan fits into memory; a batch with which it does not is left out.
        max_length: leave out longer rows.
    """
    for rows, tokens in shapes:
        if tokens > (max_length or tokens) or any(case.shape == (rows, tokens) for case in plan.cases):
            continue
        longer = replace(plan, cases=(*plan.cases, Case((tokens,) * rows)))
        plan = longer if fits(longer) else plan
    return plan
