"""Print what the fuzz tests tried."""

import sys

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A table of cases, as far as this process ran them."""
    watch = next((m for name, m in sys.modules.items() if name.endswith("fuzz.watch")), None)
    if watch is None or not watch.TALLIES:
        return
    terminalreporter.section("fuzz")
    for tally in watch.TALLIES:
        refused = ", ".join(f"{n} {name}" for name, n in sorted(tally.outcomes.items()) if name != "accepted")
        terminalreporter.line(
            f"{tally.kind:<28}{tally.outcomes.total():>7} cases{tally.accepted:>7} accepted"
            f"{tally.refused:>7} refused ({refused}){tally.seconds:>7.1f} s"
        )
