"""What a command does where its caller does not say: one place for the command line, Python and the pytest plugin."""

from funnel_export.system.place import Placing

EXPORT_WEIGHTS, PACKAGE_WEIGHTS = Placing.LINK, Placing.AUTO
SEED = 0
"""Of the tokens that are checked and timed."""
FACTOR = 4.0
"""How many times eager PyTorch's own error a target may show."""
LENGTHS, BATCHES, ROUNDS = (128, 512), (1,), 9
"""Tokens and rows that are timed, and how often."""
LEAST_ROUNDS = 6
"""The smallest and largest of n calls enclose the median with confidence 1 - 2 / 2^n: 95 % need 6."""
