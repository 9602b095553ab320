"""Options and fixtures of the pytest plugin; it does nothing without `--funnel-bundle`."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from funnel_export.spec.choices import EAGER, PYTORCH
from funnel_export.spec.defaults import MAX_KL

if TYPE_CHECKING:
    from funnel_export.bundle.load import Bundle
    from funnel_export.latency.latency_report import LatencyReport
    from funnel_export.verify.parity_report import ParityReport

GATES = str(Path(__file__).parent / "test_gates.py")
BUNDLE = pytest.StashKey["Bundle"]()
CANDIDATES = pytest.StashKey[list[str]]()
NOTES = pytest.StashKey[list[str]]()
NONE = "none"
COST = "test_quantization"
"""The gate that needs the unquantized model."""
ALONE = "other processes would disturb the timing of --funnel-min-speedup: run pytest without --numprocesses"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options, which all begin with `--funnel`."""
    group = parser.getgroup("funnel", "gates for bundles of funnel_export")
    group.addoption(
        "--funnel-bundle",
        type=Path,
        metavar="DIR",
        help="bundle to test, written --funnel-bundle=DIR; if no paths are given, nothing else is tested",
    )
    group.addoption(
        "--funnel-target", action="append", metavar="NAME", help="target to test (default: all that run here)"
    )
    group.addoption("--funnel-engine", action="append", metavar="NAME", help="engine to test, without other runtimes")
    group.addoption(
        "--funnel-min-speedup", type=float, metavar="X", help="fail if a target is less than X times as fast"
    )
    group.addoption("--funnel-length", action="append", type=int, metavar="N", help="tokens of a row to time")
    group.addoption("--funnel-batch", action="append", type=int, metavar="N", help="rows to time")
    group.addoption("--funnel-rounds", type=int, metavar="N", help="timed calls of each model, at least 6")
    group.addoption(
        "--funnel-pytorch",
        action="append",
        choices=(*PYTORCH, NONE),
        help="how to run PyTorch as a baseline (default: eager)",
    )
    group.addoption("--funnel-max-length", type=int, metavar="N", help="leave longer rows out of the parity test")
    group.addoption(
        "--funnel-unquantized",
        type=Path,
        metavar="DIR",
        help="bundle or checkpoint that a quantized bundle was made from; adds a gate on what the bits cost",
    )
    group.addoption(
        "--funnel-max-kl", type=float, default=MAX_KL, metavar="NATS", help="largest mean KL divergence from that"
    )
    group.addoption(
        "--funnel-reports", type=Path, metavar="DIR", help="folder for the reports, instead of the bundle's"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Open the bundle and add the gates to the run; an invalid bundle or option ends the run before any test."""
    folder = config.getoption("--funnel-bundle")
    if folder is None:
        return
    from funnel_export.bundle.load import load_bundle
    from funnel_export.commands.bench import shapes_to_time, validate_funnelled, ways_to_run_pytorch
    from funnel_export.commands.check import validate_numbers
    from funnel_export.commands.unquantized import open_original
    from funnel_export.errors import FunnelExportError
    from funnel_export.report.folder import reports_folder
    from funnel_export.verify.candidates import candidates

    option = config.getoption
    if option("--funnel-min-speedup") is not None and option("dist", "no") != "no":
        raise pytest.UsageError(ALONE)
    config.stash[NOTES] = []
    try:
        bundle = load_bundle(folder)
        with _noted(config):
            names = [candidate.name for candidate in candidates(bundle, **_runtimes(config))]
        if option("--funnel-reports") is not None:
            reports_folder(bundle, option("--funnel-reports"))
        validate_numbers(option("--funnel-length") or (), option("--funnel-max-length"))
        open_original(bundle, option("--funnel-unquantized"), None, option("--funnel-max-kl"))
        if option("--funnel-min-speedup") is not None:
            validate_funnelled(bundle)
            shapes_to_time(bundle, **_timing(config))
            ways_to_run_pytorch(bundle, _pytorch(config))
    except FunnelExportError as err:
        raise pytest.UsageError(str(err)) from err
    if not names:
        raise pytest.UsageError(f"no target here runs {folder}; `funnel-export doctor` says why")
    config.stash[BUNDLE], config.stash[CANDIDATES] = bundle, names
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args.clear()
    if GATES not in config.args:  # a worker of pytest-xdist gets the arguments of its parent
        config.args.append(GATES)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Note in the summary if no gate was selected, for example because of `-k` or `-m` in the project's settings."""
    config = session.config
    left = any(str(item.path) == GATES for item in session.items)
    if BUNDLE in config.stash and not left:
        config.stash[NOTES].append(f"this run has no gate of {config.stash[BUNDLE].path}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show the warnings of `check` and `bench`."""
    notes: list[str] = config.stash.get(NOTES, [])
    if notes:
        terminalreporter.section("funnel_export")
        terminalreporter.write_line("\n".join(f"warning: {note}" for note in dict.fromkeys(notes)))


class Gates(pytest.Module):
    """The module of the gates; its tests are found whatever the project's `python_functions` says."""

    def funcnamefilter(self, name: str) -> bool:
        """Whether this is the name of a test function that the options ask for."""
        asked = name != COST or self.config.getoption("--funnel-unquantized") is not None
        return name.startswith("test_") and asked


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Give the gates the node id `funnel_export/gates`, wherever the package is installed."""
    if str(module_path) != GATES:
        return None
    module: Gates = Gates.from_parent(parent, path=module_path, nodeid="funnel_export/gates")
    return module


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test for each target and engine."""
    if "funnel_runtime" in metafunc.fixturenames:
        names: list[str] = metafunc.config.stash.get(CANDIDATES, [])
        metafunc.parametrize("funnel_runtime", names)


@pytest.fixture(scope="session")
def funnel_bundle(pytestconfig: pytest.Config) -> "Bundle":
    """The bundle that `--funnel-bundle` names."""
    if BUNDLE not in pytestconfig.stash:
        pytest.skip("no --funnel-bundle")
    return pytestconfig.stash[BUNDLE]


@pytest.fixture(scope="session")
def funnel_parity(funnel_bundle: "Bundle", pytestconfig: pytest.Config) -> "ParityReport":
    """The report of `check`, which is also written into the bundle."""
    from funnel_export.commands.check import check
    from funnel_export.errors import FunnelExportWarning

    option = pytestconfig.getoption
    lengths = option("--funnel-length") or ()
    with _working(pytestconfig):
        report = check(
            funnel_bundle,
            **_runtimes(pytestconfig),
            lengths=lengths,
            max_length=option("--funnel-max-length"),
            unquantized=option("--funnel-unquantized"),
            max_kl=option("--funnel-max-kl"),
            reports=option("--funnel-reports"),
        )
        if report.lengths_left_out:
            left_out = ", ".join(map(str, report.lengths_left_out))
            warnings.warn(f"parity left out as too long: {left_out}", FunnelExportWarning, stacklevel=1)
        return report


@pytest.fixture(scope="session")
def funnel_latency(
    funnel_bundle: "Bundle", funnel_parity: "ParityReport", pytestconfig: pytest.Config
) -> "LatencyReport":
    """The report of `bench`, by default with eager PyTorch, which is also written into the bundle."""
    from funnel_export.commands.bench import bench

    if hasattr(pytestconfig, "workerinput"):  # a worker of pytest-xdist: several would time at once
        pytest.fail(ALONE, pytrace=False)
    with _working(pytestconfig):
        return bench(
            funnel_bundle,
            **_runtimes(pytestconfig),
            pytorch=_pytorch(pytestconfig),
            parity=funnel_parity,
            reports=pytestconfig.getoption("--funnel-reports"),
            **_timing(pytestconfig),
        )


def _runtimes(config: pytest.Config) -> dict[str, Any]:
    """The targets and engines to test, as arguments of `check` and `bench`."""
    return {"targets": config.getoption("--funnel-target"), "engines": config.getoption("--funnel-engine")}


def _timing(config: pytest.Config) -> dict[str, Any]:
    """The shapes, rounds and minimum speedup, as arguments of `bench`."""
    from funnel_export.spec.defaults import BATCHES, ROUNDS

    option, rounds = config.getoption, config.getoption("--funnel-rounds")
    return {
        "lengths": option("--funnel-length"),
        "batches": option("--funnel-batch") or BATCHES,
        "rounds": ROUNDS if rounds is None else rounds,
        "min_speedup": option("--funnel-min-speedup"),
    }


def _pytorch(config: pytest.Config) -> list[str]:
    """The ways to run PyTorch."""
    return [way for way in config.getoption("--funnel-pytorch") or [EAGER] if way != NONE]


@contextlib.contextmanager
def _working(config: pytest.Config) -> Iterator[None]:
    """Show errors without traceback and warnings in the summary, and hide torch's trace logs."""
    with _without_trace_logs(), _errors_without_traceback(), _noted(config):
        yield


@contextlib.contextmanager
def _noted(config: pytest.Config) -> Iterator[None]:
    """Keep this package's warnings for the summary; with `-W error` they would otherwise fail the gate."""
    from funnel_export.errors import FunnelExportWarning

    if hasattr(config, "workerinput"):  # a worker of pytest-xdist passes on warnings but has no summary
        with warnings.catch_warnings():
            warnings.simplefilter("always", FunnelExportWarning)
            yield
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FunnelExportWarning)
        try:
            yield
        finally:
            ours = [each for each in caught if issubclass(each.category, FunnelExportWarning)]
            config.stash[NOTES] += [str(each.message) for each in ours]
    for each in caught:
        if each not in ours:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)


@contextlib.contextmanager
def _errors_without_traceback() -> Iterator[None]:
    """Show this package's errors without a traceback, as they explain themselves."""
    from funnel_export.errors import FunnelExportError

    try:
        yield
    except FunnelExportError as err:
        raise pytest.fail.Exception(str(err), pytrace=False) from None  # otherwise it is printed twice


@contextlib.contextmanager
def _without_trace_logs() -> Iterator[None]:
    """Silence torch's structured trace log, which torch enables once pytest captures logs."""
    import torch  # noqa: F401 - sets up its loggers

    logger = logging.getLogger("torch.__trace")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
