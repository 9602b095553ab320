"""Pictures that tests share: nearly all tests of `check` and `bench` write reports, and none of these looks at them.

The first picture of a kind is drawn, and stands for the later ones. Tests of pictures have the marker `pictures`.
"""

import functools
from typing import Any

from funnel_export.report.canvas import Picture

_DRAWN: dict[tuple[str, str, int], Any] = {}
_DRAW = {"png": Picture.png, "svgs": Picture.svgs}


def share_drawings() -> None:
    """Draw one picture for each name and number of panels."""
    for what, draw in _DRAW.items():
        setattr(Picture, what, functools.partialmethod(_drawn, what, draw))


def draw_anew(monkeypatch: Any) -> None:
    """Draw every picture, for one test."""
    for what, draw in _DRAW.items():
        monkeypatch.setattr(Picture, what, draw)


def _drawn(picture: Picture, what: str, draw: Any) -> Any:
    kind = what, picture.name, len(picture.panels)
    if kind not in _DRAWN:
        _DRAWN[kind] = draw(picture)
    return _DRAWN[kind]
