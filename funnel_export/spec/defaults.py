"""Defaults of the commands, shared by the command line, the Python functions and the pytest plugin."""

from funnel_export.spec.choices import Dtype
from funnel_export.system.place import Placing

EXPORT_WEIGHTS, PACKAGE_WEIGHTS = Placing.LINK, Placing.AUTO
SEED = 0
"""Seed of the random tokens that are checked and timed."""
FACTOR = 4.0
"""A target's error may be this many times the error of eager PyTorch."""
MAX_KL = 0.5
"""Largest mean KL divergence between the outputs with quantized and with original weights, in nats."""
LENGTHS, BATCHES, ROUNDS = (128, 512), (1,), 9
"""Sequence lengths and batch sizes that are timed, and the number of rounds."""
LEAST_ROUNDS = 6
"""The smallest and largest of n calls enclose the median with confidence 1 - 2 / 2^n, so 95 % takes 6 calls."""
MAX_NEW_TOKENS = 256
"""Largest number of tokens of a generated text."""
EVALUATED_LENGTH = 512
"""Most tokens of a row on which a model is evaluated."""
FIT_TOKENS, FIT_LENGTH, FIT_DTYPE = 25_000, 512, Dtype.BFLOAT16
"""Tokens that `fit` uses, held-out ones included, tokens of a row, and the dtype in which it runs the model."""
CALIBRATION_TOKENS, CALIBRATION_LENGTH = 4096, 512
"""Tokens on which `quantize` calibrates a method that reads texts, and most tokens of a row."""
HELD_OUT_TOKENS = 4096
"""Most tokens of the held-out texts on which `adapt` measures losses."""
