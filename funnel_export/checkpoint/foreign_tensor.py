"""Weights that others quantized: which tensors of a file they are made of, and whether the shapes fit."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from funnel_export.checkpoint.foreign import QUANTIZE, Layout, Packing, not_taken
from funnel_export.checkpoint.safetensors import DTYPE_SIZES, StoredTensor
from funnel_export.errors import CheckpointError
from funnel_export.families.base import Family
from funnel_export.spec.quantization import Part, Quantization

WORD_SIZES = {"I8": 1, "I32": 4, "I64": 8}
"""Sizes in bytes of the integers in which others store codes, zero points and numbers of groups."""
WORD = 32
"""Bits of a word that holds several codes."""


@dataclass(frozen=True, slots=True)
class Names:
    """What the names of a weight's tensors end in, in place of `weight`."""

    codes: str
    scales: str
    zeros: str
    groups: str
    """The group of each input."""
    shape: str | None = None

    @property
    def all(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(filter(None, (self.codes, self.scales, self.zeros, self.groups, self.shape)))


_GPTQ = Names("qweight", "scales", "qzeros", "g_idx")
_COMPRESSED = Names("weight_packed", "weight_scale", "weight_zero_point", "weight_g_idx", "weight_shape")
NAMES = {
    Packing.INPUTS: _GPTQ,
    Packing.INTERLEAVED: _GPTQ,
    Packing.ROWS: _COMPRESSED,
    Packing.BYTES: Names("weight", *_COMPRESSED.all[1:]),
}


@dataclass(frozen=True, slots=True)
class ForeignTensor:
    """A weight that others quantized: its tensors in their file, whose shapes fit each other."""

    name: str
    """Name of the weight, as if it was not quantized."""
    layout: Layout
    codes: StoredTensor
    scales: StoredTensor
    zeros: StoredTensor | None
    groups: StoredTensor | None
    """The group of each input."""
    declared: StoredTensor | None
    """The shape of the weight, as its file says."""

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the weight in PyTorch, [outputs, inputs]."""
        rows, columns = self.codes.shape
        each = WORD // self.layout.bits
        shapes = {
            Packing.INPUTS: (columns, rows * each),
            Packing.INTERLEAVED: (columns * each, rows),
            Packing.ROWS: (rows, columns * each),
            Packing.BYTES: (rows, columns),
        }
        return shapes[self.layout.packing]

    @property
    def blocks(self) -> int:
        """Scales of one output."""
        return 1 if self.layout.group_size is None else self.shape[1] // self.layout.group_size

    def fault(self) -> str | None:
        """What does not fit the layout, None if everything does."""
        found = {"codes": self.codes, "scales": self.scales, "zero points": self.zeros}
        text = "; ".join(f"{name} {each.dtype} {list(each.shape)}" for name, each in found.items() if each)
        known = DTYPE_SIZES | WORD_SIZES
        tensors = [each for each in (*found.values(), self.groups, self.declared) if each]
        if any(each.nbytes != prod(each.shape) * known.get(each.dtype, 0) for each in tensors):
            return f"{text}, and sizes in bytes that are not those"
        if len(self.codes.shape) != 2 or 0 in self.codes.shape or self.scales.dtype not in DTYPE_SIZES:
            return text
        outputs, inputs = self.shape
        if inputs % (self.layout.group_size or 1):
            return f"{text}, and {inputs} inputs"
        fits = (
            self.codes.dtype == ("I8" if self.layout.packing is Packing.BYTES else "I32")
            and self.scales.shape == self._by_block(outputs)
            and (self.layout.symmetric if self.zeros is None else self._zeros_fit(self.zeros))
            and (self.groups is None or (self.groups.dtype, self.groups.shape) == ("I32", (inputs,)))
            and (self.declared is None or self.declared.shape == (2,))
        )
        return None if fits else text

    def _zeros_fit(self, zeros: StoredTensor) -> bool:
        """Whether the zero points have one of the shapes of their layout."""
        outputs = self.shape[0]
        packed = ("I32", self._by_block(-(-outputs * self.layout.bits // WORD)))
        single = ("I8", self._by_block(outputs))
        forms = {Packing.ROWS: (packed, single), Packing.BYTES: (single,)}
        return (zeros.dtype, zeros.shape) in forms.get(self.layout.packing, (packed,))

    def _by_block(self, outputs: int) -> tuple[int, int]:
        """The shape of a tensor with a value for each block of each output, or for some outputs together."""
        by_rows = self.layout.packing in (Packing.ROWS, Packing.BYTES)
        return (outputs, self.blocks) if by_rows else (self.blocks, outputs)


def foreign_bare_of(name: str, layout: Layout) -> str:
    """The weight that a stored tensor belongs to, as it would be called if it was not quantized."""
    module, _, last = name.rpartition(".")
    return f"{module}.weight" if last in NAMES[layout.packing].all else name


def foreign_tensor(tensors: Mapping[str, StoredTensor], name: str, layout: Layout) -> ForeignTensor | None:
    """The quantized weight of a name among stored tensors, None if there is none.

    Raises:
        CheckpointError: if a tensor of it is missing, or has another shape or dtype than its layout needs.
    """
    names, module = NAMES[layout.packing], name.removesuffix("weight")
    if not name.endswith(".weight") or not any(module + each in tensors for each in names.all if each != "weight"):
        return None
    found = {each: tensors[module + each] for each in names.all if module + each in tensors}
    fault = f"only {', '.join(found)}"
    if {names.codes, names.scales} <= found.keys() and (names.codes == "weight" or name not in tensors):
        parts = (found.get(each) for each in (names.zeros, names.groups, names.shape or ""))
        weight = ForeignTensor(name, layout, found[names.codes], found[names.scales], *parts)
        shapes = weight.fault()
        if shapes is None:
            return weight
        fault = shapes
    groups = "one scale for each output" if layout.group_size is None else f"groups of {layout.group_size}"
    zeros = "symmetric" if layout.symmetric else "with zero points"
    raise CheckpointError(
        "a quantized weight is not stored as config.json says",
        got=f"{name}: {fault}",
        wanted=f"codes and scales of {layout.origin}: {layout.bits} bits, {groups}, {zeros}",
        hint=f"models whose weights differ in bits or groups are not taken; {QUANTIZE}",
    )


def describe(layout: Layout, family: Family, tensors: Mapping[str, StoredTensor], names: Iterable[str]) -> Quantization:
    """How a checkpoint of others is quantized, as its file says: config.json has patterns of names only.

    Args:
        layout: of all its quantized weights.
        family: of the checkpoint.
        tensors: all stored tensors.
        names: of its weights, as if they were not quantized.

    Raises:
        CheckpointError: if a quantized weight is incomplete, if the embedding is quantized, or if nothing is.
    """
    quantized: dict[Part, list[str]] = {}
    plain: dict[Part, list[str]] = {}
    for name in names:
        part = None if name.startswith(family.other_parts) else family.part_of(name)
        if part is not None:
            group = plain if foreign_tensor(tensors, name, layout) is None else quantized
            group.setdefault(part, []).append(family.bare_name(name))
    if Part.EMBEDDING in quantized:
        raise not_taken(f"{layout.origin} with a quantized embedding: {quantized[Part.EMBEDDING][0]}")
    if not quantized:
        raise not_taken(f"{layout.origin} in config.json, but no weight of the language model is quantized")
    kept = {Part.EMBEDDING, Part.HEAD, *plain} - quantized.keys()
    return Quantization(
        bits=layout.bits,
        block_size=layout.group_size,
        symmetric=layout.symmetric,
        keep=tuple(kept),
        origin=layout.origin,
        kept_weights=tuple(name for part in quantized for name in plain.get(part, [])),
    )
