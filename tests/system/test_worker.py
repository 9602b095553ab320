"""Child processes: what they answer, how they end, and that none can hang its caller."""

import time

import pytest

from funnel_export.system.worker import Worker, WorkerSilentError


def test_lines_come_as_they_were_written() -> None:
    with Worker(("-c", "import sys; [print(line, end='', flush=True) for line in sys.stdin]")) as worker:
        for line in ("one", "", "three"):
            worker.send(line)
            assert worker.receive(30) == line


def test_an_end_is_no_line() -> None:
    with Worker(("-c", "import sys; print(); print('last words', file=sys.stderr); sys.exit(3)")) as worker:
        assert worker.receive(30) == ""
        assert worker.receive(30) is None
        assert worker.death() == "exit code 3\nlast words"
        assert not worker.was_killed


def test_one_that_hangs_is_ended_and_has_its_last_words() -> None:
    program = "import sys, time; print('loading', file=sys.stderr, flush=True); time.sleep(600)"
    start = time.monotonic()
    with Worker(("-c", program)) as worker, pytest.raises(WorkerSilentError) as caught:
        worker.receive(2)
    assert str(caught.value) == "no answer in 2 s; signal SIGKILL\nloading"
    assert time.monotonic() - start < 60


def test_one_that_reads_nothing_is_ended() -> None:
    """A pipe holds 64 KiB; what is longer waits for a reader."""
    program = "import sys, time; print('busy', file=sys.stderr, flush=True); time.sleep(600)"
    start = time.monotonic()
    with Worker(("-c", program)) as worker, pytest.raises(WorkerSilentError) as caught:
        worker.send("x" * (1 << 20), 2)
    assert str(caught.value) == "it did not read a request in 2 s; signal SIGKILL\nbusy"
    assert time.monotonic() - start < 60


def test_a_long_line_arrives_whole() -> None:
    line = "äöü" * (1 << 19)
    with Worker(("-c", "import sys, time; time.sleep(0.5); print(len(sys.stdin.readline()))")) as worker:
        worker.send(line, 30)
        assert worker.receive(30) == str(len(line) + 1)


def test_nothing_is_sent_to_one_that_has_ended() -> None:
    with Worker(("-c", "")) as worker:
        assert worker.receive(30) is None
        worker.send("x" * (1 << 20), 2)
        assert worker.death() == "exit code 0"


def test_one_that_closes_its_end_and_lives_on_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("funnel_export.system.worker.PATIENCE", 0.5)
    with Worker(("-c", "import os, time; os.close(1); time.sleep(600)")) as worker:
        assert worker.receive(30) is None
        assert worker.death() == "signal SIGKILL"
