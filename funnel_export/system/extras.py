"""The extras of this distribution, which install optional packages."""

import re
from importlib.metadata import PackageNotFoundError, requires

DISTRIBUTION = "funnel-export"


def install_command(extra: str) -> str:
    """The `pip` command that installs the packages of an extra, with their lower bounds.

    It names the packages, since the distribution is on no index: `pip install 'funnel-export[...]'` would fail.
    """
    try:
        requirements = [each.partition(";") for each in requires(DISTRIBUTION) or ()]
    except PackageNotFoundError:  # the package runs from a folder where it is not installed
        requirements = []
    found = [name.strip() for name, _, marker in requirements if re.fullmatch(rf"\s*extra == .{extra}.\s*", marker)]
    if not found:
        return f"pip install '.[{extra}]' in a clone of this project"
    return f"pip install {' '.join(map(repr, found))}"
