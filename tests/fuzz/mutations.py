"""Files that are almost right: a valid JSON value or file with a few things deleted, replaced, nested or mangled."""

import copy
import json
from collections.abc import Iterable, Iterator
from typing import Any

from hypothesis import strategies as st

LITERALS = {"@infinite": "1e999", "@digits": "9" * 5000, "@deep": "[" * 3000 + "]" * 3000, "@half": '"\\ud800"'}
"""JSON that `json.dumps` does not write, by the text that stands for it until the end."""

NASTY: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 5, 7, 8, 16, 1 << 24, 1 << 31, 1 << 63, -(1 << 63), 10**30),
    *(0.0, -0.0, 0.5, -1.5, 1e-320, 1e308, float("nan"), float("inf"), -float("inf")),
    *("", "0", "x", "..", "../x", "/etc/passwd", "a\0b", "\x1b[31m\nred", "gelu", "linear", "yarn", "llama3", "F64"),
    *([], [[]], {}, {"": 0}, [None], [0, 1 << 62], ["full_attention"], {"rope_type": "yarn", "factor": 0}),
    *LITERALS,
]


def as_json(value: Any) -> bytes:
    """A value as JSON, the literals in their place."""
    text = json.dumps(value)
    for name, literal in LITERALS.items():
        text = text.replace(json.dumps(name), literal)
    return text.encode()


def replaced(valid: dict[str, Any], keys: Iterable[str]) -> Iterator[bytes]:
    """`valid` as JSON, with each nasty value under each of these keys in turn."""
    for key in keys:
        for value in NASTY:
            yield as_json(valid | {key: value})


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (object or array, key) inside a JSON value."""
    if not isinstance(value, dict | list):
        return []
    keys = list(value) if isinstance(value, dict) else range(len(value))
    return [place for key in keys for place in ((value, key), *places(value[key]))]


def _retyped(value: Any) -> list[Any]:
    """The same thing said in another type, and its neighbours."""
    same = [str(value), [value], {"value": value}, [value] * 3]
    if isinstance(value, int | float):
        same += [float(value), value + 1, value - 1, value * 2, value // 2, -value]
    if isinstance(value, dict):
        same += [list(value), list(value.items())]
    return same


@st.composite
def mutated(draw: st.DrawFn, valid: dict[str, Any], keys: tuple[str, ...] = ()) -> bytes:
    """`valid` as JSON with one to three changes; `keys` are worth adding."""
    value = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        if keys and draw(st.integers(0, 3)) == 0:
            value[draw(st.sampled_from(keys))] = copy.deepcopy(draw(st.sampled_from(NASTY)))
            continue
        holder, key = draw(st.sampled_from(places(value) or [(value, "model_type")]))
        match draw(st.sampled_from(["replace", "retype", "delete", "swap", "rename"])):
            case "delete" if key in holder or isinstance(holder, list):
                del holder[key]
            case "retype" if not isinstance(holder, dict) or key in holder:
                holder[key] = copy.deepcopy(draw(st.sampled_from(_retyped(holder[key]))))
            case "swap":
                other, place = draw(st.sampled_from(places(value) or [(value, "model_type")]))
                holder[key] = (
                    copy.deepcopy(other[place]) if isinstance(other, list) else copy.deepcopy(other.get(place))
                )
            case "rename" if isinstance(holder, dict) and key in holder:
                holder[draw(st.text(max_size=8))] = holder.pop(key)
            case _:
                holder[key] = copy.deepcopy(draw(st.sampled_from(NASTY)))
    return as_json(value)


@st.composite
def mangled(draw: st.DrawFn, valid: bytes) -> bytes:
    """`valid` with one to four bytes or stretches changed, whatever they mean."""
    content = valid
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(content)))
        end = min(len(content), begin + draw(st.integers(0, 12)))
        match draw(st.sampled_from(["cut", "insert", "overwrite", "repeat", "flip"])):
            case "cut":
                content = content[:begin]
            case "insert":
                content = content[:begin] + draw(st.binary(max_size=8)) + content[begin:]
            case "overwrite":
                content = content[:begin] + draw(st.binary(max_size=8)) + content[end:]
            case "repeat":
                content = content[:end] + content[begin:]
            case "flip" if begin < len(content):
                flipped = content[begin] ^ 1 << draw(st.integers(0, 7))
                content = content[:begin] + bytes([flipped]) + content[begin + 1 :]
    return content
