"""Where the bundles are, and that this package cannot be imported beside them."""

import importlib.util
from pathlib import Path

import pytest
from cases import NAMES, Case

ROOT = Path(__file__).parents[2]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the bundles be elsewhere."""
    parser.addoption("--bundles", type=Path, default=ROOT / "build" / "interop", help="what make_bundles.py wrote")
    parser.addoption("--node", type=Path, help="folder in which onnxruntime-node is installed")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to run where the tests would prove nothing."""
    if importlib.util.find_spec("funnel_export") is not None:
        raise pytest.UsageError("tests/interop is for an environment without funnel_export; run `make interop`")
    if not config.getoption("--bundles").is_dir():
        raise pytest.UsageError(f"no bundles in {config.getoption('--bundles')}; run `make interop`")


@pytest.fixture(scope="session")
def bundles(pytestconfig: pytest.Config) -> Path:
    """The folder that make_bundles.py wrote."""
    return pytestconfig.getoption("--bundles").resolve()  # tests run commands in other folders


@pytest.fixture(params=NAMES)
def case(request: pytest.FixtureRequest, bundles: Path) -> Case:
    """Each bundle with its reference."""
    return Case.read(bundles, request.param)
