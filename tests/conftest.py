"""Settings for every test: hypothesis profiles, one thread, what tests share."""

import gc
import os
import sys
from collections.abc import Iterator

import no_telemetry  # noqa: F401 - before anything imports OpenVINO
import pytest
import torch
from hypothesis import Phase, settings
from jaxtyping import config, install_import_hook

# Collect rarely, from the first import on: tiny models leave many small objects.
gc.set_threshold(100_000)

# They have environments of their own: `make interop`, `make lowest`.
collect_ignore = ["interop", "lowest"]

# Before any test imports the package: the hook sees only modules loaded after it. Checks of shapes are off until a test
# in `SHAPED` runs: they took 70 of 1,356 seconds of CPU.
install_import_hook(["funnel_export.funnel"], "beartype.beartype")
config.update("jaxtyping_disable", True)

from drawings import draw_anew, share_drawings  # noqa: E402 - after the hook
from exported import added_to_shared_bundles  # noqa: E402
from forked import import_anew, share_imports  # noqa: E402
from models import true_float64  # noqa: E402
from references import compute_anew, share_references  # noqa: E402
from tiers import SOAK  # noqa: E402
from tracing import share_traces, trace_anew  # noqa: E402

from funnel_export.latency import trials  # noqa: E402

# Tiny models gain nothing from a second thread, and wait for it whenever something else runs on the machine. In runners
# of a bench, which take turns, waiting threads took three times the work.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start

# Explaining a failure reruns it under a tracer, for longer than all the tests take.
PHASES = [phase for phase in Phase if phase is not Phase.explain]

settings.register_profile("default", derandomize=True, deadline=None, max_examples=25, database=None, phases=PHASES)
settings.register_profile("thorough", derandomize=False, deadline=None, max_examples=500, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
# No test judges latencies, so none waits for the thread pools of the call before.
trials.REST = 0.0

share_traces()
share_references()
share_imports()
share_drawings()

# What the libraries hold stays to the end: no collection needs to look at it.
gc.collect()
gc.freeze()

SHAPED = ("funnel", "families")
"""Folders whose tests check the shapes in the annotations of the funnel by jaxtyping; in `make soak` all tests do."""

FIRST = (
    "test_exports.py",
    "test_bench.py",
    "test_adapt.py",
    "test_readme.py",
    "gates",
    "test_graphs.py",
    "verify",
    "test_semantics.py",
    "test_places.py",
    "test_tensorrt_build.py",
    "test_bench_steps.py",
    "test_pages.py",
    "test_optimum.py",
    "fuzz",
    "test_room.py",
    "test_trials.py",
    "test_steps.py",
    "test_cli.py",
    "exporter",
    "bundle",
)
"""Names of files and folders, those that take longest first: so both workers end with short ones, and together."""


ANEW = {"traces": trace_anew, "references": compute_anew, "pictures": draw_anew, "processes": import_anew}
"""By marker, what stops the sharing for one test."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files; the order within each file stays."""
    items.sort(key=lambda item: next((n for n, name in enumerate(FIRST) if name in item.path.parts), len(FIRST)))


@pytest.fixture(scope="module")
def exact() -> Iterator[None]:
    """Run Hugging Face's layers in float64, as the oracle computes."""
    with true_float64():
        yield


@pytest.fixture(autouse=True)
def _anew(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Share nothing of a kind with other tests if the test has the kind's marker."""
    for marker, stop_sharing in ANEW.items():
        if request.node.get_closest_marker(marker):
            stop_sharing(monkeypatch)


@pytest.fixture(autouse=True)
def _shapes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Check the shapes that functions of the funnel take and return; see `SHAPED`."""
    config.update("jaxtyping_disable", not SOAK and request.path.parent.name not in SHAPED)
    yield
    config.update("jaxtyping_disable", True)


@pytest.fixture(autouse=True)
def _frozen() -> Iterator[None]:
    """Leave what libraries hold out of later collections, as above, after a test that imported some."""
    before = len(sys.modules)
    yield
    if len(sys.modules) != before:
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True)
def _shared_bundles() -> Iterator[None]:
    """Fail a test that writes into a bundle that other tests share: they would depend on the order of the tests."""
    yield
    assert not added_to_shared_bundles()
