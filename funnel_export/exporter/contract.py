"""Contracts: text that describes what a graph computes, without weights, for review and for comparison in CI.

A contract does not depend on the run or the machine: values are numbered by first use, and the names of tools and
inner values are omitted. Constants of up to `PRINTED` elements are printed, so a changed softcap is visible. Identical
layers are written once.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from funnel_export.checkpoint.quantized import bare_of
from funnel_export.exporter.audit_layers import producer, sliding_window_of
from funnel_export.spec.funnel import boundary_of

PRINTED = 16
"""Largest number of elements that are printed; longer constants show first element, last element and sum."""

_BLOCK = re.compile(r"(layers\.\d+|\w+/pool|\w+/recover)/")
_LAYER_WEIGHT = re.compile(r"(?:model\.)?layers\.\d+\.")

_TYPES = {
    ir.DataType.FLOAT: "f32",
    ir.DataType.FLOAT16: "f16",
    ir.DataType.BFLOAT16: "bf16",
    ir.DataType.INT64: "i64",
    ir.DataType.INT32: "i32",
    ir.DataType.INT8: "i8",
    ir.DataType.UINT8: "u8",
    ir.DataType.INT4: "i4",
    ir.DataType.UINT4: "u4",
    ir.DataType.BOOL: "bool",
}


def describe_contract(model: ir.Model) -> str:
    """The contract of an exported graph.

    1. Inputs and outputs with dtypes and axes, and the number of nodes of each op.
    2. The model: its own nodes in order, and one line per block (a layer, the pooling or the recovery). If a block
       takes a mask, a comment gives the mask's sliding window.
    3. Each distinct block: `$n` are its operands, `%n` its values, names that begin with `.` are weights of the layer,
       `f32(...)` is a weight with a cast, and `i4[64](...)` one that is computed from codes of 4 bits in blocks of 64.
       `result`, `key` and `value` are what it gives to others.

    Nodes of a block whose values are used outside it, such as shared shapes, are listed with the model.
    """
    scopes = _scopes(model)
    texts: dict[str, list[Scope]] = {}
    for block in dict.fromkeys(scopes[node] for node in model.graph if node in scopes):
        texts.setdefault(block.text(), []).append(block)
    labels = {block: label for label, same in zip(_labels(texts), texts.values(), strict=True) for block in same}
    lines = [*_interface(model), "", "model:", *_model_lines(model, scopes, labels)]
    for text, same in texts.items():
        title = labels[same[0]] + (f" (x{len(same)})" if len(same) > 1 else "")
        lines += ["", f"{title}:", text]
    return "\n".join(lines) + "\n"


@dataclass(eq=False)
class Scope:
    """The nodes of a block, or, with the name "", those of the model outside all blocks."""

    name: str
    nodes: list[ir.Node] = field(default_factory=list)
    operands: list[ir.Value] = field(default_factory=list)
    """Values from outside the block, by first use."""
    numbers: dict[ir.Value, int] = field(default_factory=dict)
    results: dict[ir.Value, str] = field(default_factory=dict)
    """Results of the block, by their names inside: `result`, and `key` and `value` of a layer with a cache."""

    @property
    def boundary(self) -> str:
        """Name of the block's result."""
        return boundary_of(self.name)

    def text(self) -> str:
        """The lines of a block."""
        return "\n".join(self.line(node) for node in self.nodes)

    def line(self, node: ir.Node) -> str:
        """One node: `%4 f32 = Div(%3, 50.0f32) attribute=value`."""
        inputs = ", ".join(self.operand(value) for value in node.inputs)
        results = ", ".join(f"{self.result(value)} {_type(value)}" for value in node.outputs)
        attributes = "".join(f" {name}={_attribute(a)}" for name, a in sorted(node.attributes.items()))
        domain = f"{node.domain}::" if node.domain not in ("", "ai.onnx") else ""
        return f"  {results} = {domain}{node.op_type}({inputs}){attributes}"

    def result(self, value: ir.Value) -> str:
        """Name of a value that a node of this scope computes."""
        name = str(value.name)
        if self.name and (name == self.boundary or value.is_graph_output()):
            return self.results.setdefault(value, name.rpartition(".")[2] if name.startswith("present.") else "result")
        if value.is_graph_output():
            return name
        return f"%{self.numbers.setdefault(value, len(self.numbers))}"

    def operand(self, value: ir.Value | None) -> str:
        """Text for an input of a node of this scope."""
        if value is None:
            return "_"
        if _is_weight(value):
            return _LAYER_WEIGHT.sub(".", str(value.name))
        if value.const_value is not None:
            return _constant(value.const_value)
        weight = _cast_weight(value.producer())
        if weight is not None:
            return f"{_type(value)}({self.operand(weight)})"
        codes = _codes(value.producer())
        if codes is not None:
            return f"{_form(value.producer())}({bare_of(self.operand(codes))})"
        if value in self.numbers:
            return f"%{self.numbers[value]}"
        if value in self.results:
            return self.results[value]
        if not self.name:
            return str(value.name)
        if value not in self.operands:
            self.operands.append(value)
        return f"${self.operands.index(value)}"


def _scopes(model: ir.Model) -> dict[ir.Node, Scope]:
    """The block of each node, by the prefix of its name.

    Nodes whose values are used outside the block belong to the model, except for the block's results.
    """
    blocks: dict[str, Scope] = {}
    scopes: dict[ir.Node, Scope] = {}
    for node in reversed(model.graph):
        match = _BLOCK.match(node.name or "")
        if match is None:
            continue
        block = blocks.setdefault(match.group(1), Scope(match.group(1)))
        inner = [value for value in node.outputs if value.name != block.boundary and not value.is_graph_output()]
        if not any(scopes.get(use.node) is not block for value in inner for use in value.uses()):
            scopes[node] = block
    for node in model.graph:
        if node in scopes:
            scopes[node].nodes.append(node)
    return scopes


def _model_lines(model: ir.Model, scopes: dict[ir.Node, Scope], labels: dict[Scope, str]) -> Iterator[str]:
    """The model's own nodes in graph order; each block is one line at the place of its last node."""
    own = Scope("")
    for node in model.graph:
        block = scopes.get(node)
        if _cast_weight(node) is not None or _codes(node) is not None:
            continue
        if block is None:
            yield own.line(node)
        elif node is block.nodes[-1]:
            operands = ", ".join(own.operand(operand) for operand in block.operands)
            given = sorted(block.results, key=lambda value: block.results[value] != "result")
            results = ", ".join(str(value.name) for value in given)
            yield f"  {results} = {labels[block]}({operands}){_mask_note(block.operands)}"


def _mask_note(operands: Iterable[ir.Value]) -> str:
    """A comment with the kind of mask among a block's operands."""
    for operand in operands:
        joined = producer(operand, "Concat")  # a mask for earlier keys and one for the chunk's
        for value in (operand,) if joined is None else joined.inputs:
            if value and producer(value, "Where") and value.dtype not in (None, ir.DataType.INT64):
                window = sliding_window_of(value)
                return "  # full attention" if window is None else f"  # sliding window {window}"
    return ""


def _labels(texts: dict[str, list[Scope]]) -> Iterator[str]:
    """One label for each distinct block: `pool`, `recover`, `layer`, or `layer.1`, `layer.2` if layers differ."""
    kinds = ["layer" if same[0].name.startswith("layers.") else same[0].name for same in texts.values()]
    totals, seen = Counter(kinds), Counter[str]()
    for kind in kinds:
        seen[kind] += 1
        yield kind if totals[kind] == 1 else f"{kind}.{seen[kind]}"


def _interface(model: ir.Model) -> Iterator[str]:
    yield f"opset {model.opset_imports.get('', 0)}"
    for kind, values in (("input", model.graph.inputs), ("output", model.graph.outputs)):
        yield from (f"{kind} {value.name} {_type(value)}{_axes(value)}" for value in values)
    counts = Counter(node.op_type for node in model.graph)
    yield f"nodes {counts.total()}: " + ", ".join(f"{op} {count}" for op, count in sorted(counts.items()))
    for name, value in sorted(_folded(model.graph.initializers.values()).items()):
        yield f"weight {name} {_type(value[0])}{_axes(value[0])}" + (f" (x{len(value)})" if len(value) > 1 else "")


def _folded(values: Iterable[ir.Value]) -> dict[str, list[ir.Value]]:
    """Weights by name; all layers share one name."""
    folded: dict[str, list[ir.Value]] = {}
    for value in values:
        if _is_weight(value):
            folded.setdefault(_LAYER_WEIGHT.sub("layers.*.", str(value.name)), []).append(value)
    return folded


def _cast_weight(node: ir.Node | None) -> ir.Value | None:
    """The weight that this node casts, or None if it is not the cast of a weight."""
    value = node.inputs[0] if node is not None and node.op_type == "Cast" else None
    return value if value is not None and _is_weight(value) else None


def _codes(node: ir.Node | None) -> ir.Value | None:
    """The codes from which this node computes weights, None if it does not."""
    return node.inputs[0] if node is not None and node.op_type == "DequantizeLinear" else None


def _form(node: ir.Node | None) -> str:
    """Dtype of the codes, and how many inputs share a scale; nothing if all do."""
    assert node is not None
    codes, block = node.inputs[0], node.attributes.get_int("block_size", 0)
    return ("?" if codes is None else _type(codes)) + (f"[{block}]" if block else "")


def _is_weight(value: ir.Value) -> bool:
    return isinstance(value.const_value, ir.ExternalTensor)


def _type(value: ir.Value | ir.TensorProtocol) -> str:
    return "?" if value.dtype is None else _TYPES.get(value.dtype, value.dtype.name.lower())


def _axes(value: ir.Value) -> str:
    if value.shape is None:
        return "[?]"
    return f"[{', '.join(str(d.value) if isinstance(d, ir.SymbolicDim) else str(d) for d in value.shape)}]"


def _constant(tensor: ir.TensorProtocol) -> str:
    """A constant's elements. Floats have six digits, because further digits may differ between machines."""
    array, kind = tensor.numpy(), _type(tensor)
    if array.size > PRINTED:
        flat = np.asarray(array, dtype=np.float64).reshape(-1)
        return f"{kind}{list(array.shape)}({flat[0]:.6g} .. {flat[-1]:.6g}, sum {flat.sum():.6g})"
    numbers = [_number(number, tensor.dtype) for number in array.reshape(-1)]
    body = numbers[0] if array.ndim == 0 else f"[{', '.join(numbers)}]"
    return f"{body}:{kind}" + (f"{list(array.shape)}" if array.ndim > 1 else "")


def _number(number: object, dtype: ir.DataType) -> str:
    if dtype.is_floating_point():
        return f"{float(number):.6g}"  # type: ignore[arg-type]  # NumPy's scalars have no common type
    return str(number)


def _attribute(attribute: ir.Attr) -> str:
    value = attribute.value
    if isinstance(value, ir.TensorProtocol):
        return str(value.numpy().tolist())
    if attribute.name == "to":
        return _TYPES.get(ir.DataType(value), str(value))
    return str(list(value)) if isinstance(value, list | tuple) else str(value)
