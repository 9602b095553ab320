"""The command line, run as a user would."""

import subprocess
import sys


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command as a user would."""
    command = [sys.executable, "-m", "funnel_export", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)
