"""`python -m funnel_export` is the command line."""

from funnel_export.cli import main

main()
