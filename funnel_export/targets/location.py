"""Where in the funnel a node of a graph stands, from the name that the export gave it."""

import re
from collections.abc import Iterable

from funnel_export.spec.funnel import FunnelSpec


def describe_place(node: str, spec: FunnelSpec | None) -> str:
    """A node's place in words, as "layer 3, middle, on 1/2 of the length"; empty for a name that no export gives."""
    if node.startswith("funnel/pool/") and spec is not None:
        return f"the pooling before layer {spec.pool_layer}"
    if node.startswith("funnel/recover/") and spec is not None:
        return f"the recovery before layer {spec.recover_layer}"
    if node.startswith("model/"):
        return "outside the layers: embedding, positions, masks, final norm or head"
    layer = re.match(r"layers\.(\d+)/", node)
    if layer is None:
        return ""
    index = int(layer[1])
    if spec is None:
        return f"layer {index}"
    if spec.pool_layer <= index < spec.recover_layer:
        return f"layer {index}, middle, on 1/{spec.stride} of the length"
    return f"layer {index}, {'entry' if index < spec.pool_layer else 'exit'}, at full length"


def nodes_named_in(message: str, names: Iterable[str]) -> list[str]:
    """The nodes that a runtime's message names, longest first, so that no name is found inside another."""
    found: list[str] = []
    for name in sorted(filter(None, names), key=len, reverse=True):
        if re.search(rf"(?<![\w./]){re.escape(name)}(?![\w/])", message):
            found.append(name)
            message = message.replace(name, " ")
    return found
