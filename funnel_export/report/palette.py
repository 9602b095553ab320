"""Colours of pictures and page, in a light and a dark theme.

Blue and orange can be told apart with colour blindness. Lines, dashes and markers differ too, so that no information
depends on colour alone.
"""

from types import MappingProxyType

LIGHT = MappingProxyType(
    {
        "page": "#ffffff",
        "card": "#f6f8fa",
        "ink": "#1f2328",
        "muted": "#59636e",
        "grid": "#d1d9e0",
        "dense": "#b35900",
        "funnel": "#0a5fc4",
        "predicted": "#7a3db8",
        "good": "#1a7f37",
        "bad": "#c4121f",
    }
)
DARK = MappingProxyType(
    {
        "page": "#0d1117",
        "card": "#161b22",
        "ink": "#e6edf3",
        "muted": "#9da7b3",
        "grid": "#3d444d",
        "dense": "#f0a03e",
        "funnel": "#6cb2ff",
        "predicted": "#d0a8ff",
        "good": "#4ac26b",
        "bad": "#ff8078",
    }
)
SENTINELS = MappingProxyType({name: f"#0e0d{index:02x}" for index, name in enumerate(LIGHT)})
"""Placeholder colours in pictures for the page, which `themed` replaces with CSS variables."""


def themed(svg: str) -> str:
    """An SVG that was drawn with `SENTINELS`, with the page's CSS variables instead."""
    for name, sentinel in SENTINELS.items():
        svg = svg.replace(sentinel, f"var(--{name})")
    return svg
