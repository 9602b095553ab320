"""An error shows what it quotes, whatever that holds, and is no longer than it helps."""

import json

import pytest

from funnel_export.errors import FunnelExportError, printable


def test_what_a_terminal_would_obey_is_shown() -> None:
    error = FunnelExportError("wrong\x1b]0;title\x07", got="red\x1b[31m \x9b2J \u202e \udcff", wanted="…", hint="Grüße")
    assert str(error) == (
        "wrong\\u001b]0;title\\u0007\n  got: red\\u001b[31m \\u009b2J \\u202e \\udcff\n  wanted: …\n  try: Grüße"
    )
    assert error.what == "wrong\\u001b]0;title\\u0007"


def test_a_quoted_line_break_begins_no_part() -> None:
    error = FunnelExportError("wrong", got="name\n  try: rm -rf /")
    assert str(error) == "wrong\n  got: name\n      try: rm -rf /"


def test_a_long_value_is_cut() -> None:
    assert len(str(FunnelExportError("wrong", got="x" * 10**6))) < 2100


@pytest.mark.parametrize("text", ["\x7f", "\x9b", "\U000e0001", "\t", "plain"])
def test_json_stays_the_same_value(text: str) -> None:
    shown = printable(json.dumps({"name": text}, ensure_ascii=False))
    assert json.loads(shown) == {"name": text}
    assert shown.isprintable()
