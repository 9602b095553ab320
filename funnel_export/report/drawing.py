"""The funnel as a picture in text: which layers run at which length."""

from funnel_export.spec.funnel import FunnelSpec

WIDTH = 32


def draw_funnel(num_layers: int, spec: FunnelSpec | None) -> str:
    """Each segment as a bar as long as its sequence, with the pooling and the recovery between them."""
    if spec is None:
        return _segment("dense", 0, num_layers, WIDTH, "L tokens")
    slots = f"L/{spec.stride} slots" if spec.stride > 1 else "L slots"
    short = max(1, WIDTH // spec.stride)
    ahead = ", lookahead" if spec.lookahead else ""
    rows = [
        _segment("entry", 0, spec.pool_layer, WIDTH, "L tokens"),
        f"{'':22}▼ pool: {spec.pooling} of {spec.stride} tokens{ahead}, {spec.slot_positions} positions",
        _segment("middle", spec.pool_layer, spec.recover_layer, short, slots),
        f"{'':22}▲ recover: {spec.recovery}",
        _segment("exit", spec.recover_layer, num_layers, WIDTH, "L tokens"),
    ]
    return "\n".join(row for row in rows if row)


def _segment(name: str, start: int, end: int, width: int, length: str) -> str:
    if start == end:
        return ""
    layers = f"layer {start}" if end == start + 1 else f"layers {start}-{end - 1}"
    return f"{name:<7} {layers:<13} {'█' * width:<{WIDTH}} {length}"
