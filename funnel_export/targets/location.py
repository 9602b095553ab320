"""Finds a node's place in the funnel from the name that the export gave it."""

import re
from collections.abc import Iterable, Sequence

from funnel_export.spec.funnel import Segment, node_prefix


def describe_place(node: str, segments: Sequence[Segment]) -> str:
    """A node's place in words, for example "layer 3, middle, on 1/2 of the length"; empty for an unknown name."""
    for segment in segments:
        if segment.pooled and node.startswith(f"{node_prefix(segment.pooled_name)}/"):
            return f"the pooling before layer {segment.layers.start}"
        if segment.funnel is not None and node.startswith(f"{node_prefix(segment.recovered_name)}/"):
            return f"the recovery before layer {segment.funnel.recover_layer}"
    if node.startswith("model/"):
        return "outside the layers: embedding, positions, masks, final norm or head"
    layer = re.match(r"layers\.(\d+)/", node)
    if layer is None:
        return ""
    index = int(layer[1])
    found = [segment for segment in segments if index in segment.layers]
    if not found or (len(segments) == 1 and not found[0].pooled):
        return f"layer {index}"
    segment = found[0]
    length = f"on 1/{segment.stride} of the length" if segment.pooled else "at full length"
    return f"layer {index}, {segment.name}, {length}"


def nodes_named_in(message: str, names: Iterable[str]) -> list[str]:
    """The node names in a runtime's message; longer names are searched first, since they may contain shorter ones."""
    found: list[str] = []
    for name in sorted(filter(None, names), key=len, reverse=True):
        if re.search(rf"(?<![\w./]){re.escape(name)}(?![\w/])", message):
            found.append(name)
            message = message.replace(name, " ")
    return found
