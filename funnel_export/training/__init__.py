"""Training of models for their funnel."""

import logging

# `Trainer` imports peft, and peft imports neural_compressor if it is installed, which logs the machine at the console.
logging.getLogger("neural_compressor").disabled = True
