"""What `optimum-cli` reads at every start: `optimum-cli export funnel` is `funnel-export export` under another name."""

import argparse
from typing import ClassVar

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand


class FunnelExportCommand(BaseOptimumCLICommand):  # type: ignore[misc]  # Optimum is not typed
    """Hands its arguments on, so that options, help and errors have one source."""

    COMMAND: ClassVar[CommandInfo] = CommandInfo(
        name="funnel",
        help="Export a checkpoint with a funnel to an ONNX bundle, without loading its weights.",
    )

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Take every argument as it is, in any order."""
        # No argument holds a NUL, so none is an option to argparse, which would answer --help itself and refuse a
        # REMAINDER that begins with an option.
        parser.prefix_chars = "\0"
        parser.add_argument("arguments", nargs=argparse.REMAINDER)

    def run(self) -> None:
        """Run `funnel-export export` with the arguments."""
        from funnel_export.cli import run

        run(self.args.arguments, command="export", program="optimum-cli export funnel")


REGISTER_COMMANDS = [(FunnelExportCommand, ExportCommand)]
