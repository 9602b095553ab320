"""Settings for every test: shapes checked by jaxtyping, hypothesis profiles, one thread."""

import os

import torch
from hypothesis import Phase, settings
from jaxtyping import install_import_hook

# They have an environment of their own, without this package: `make interop`.
collect_ignore = ["interop"]

# Before any test imports the package: the hook sees only modules loaded after it.
install_import_hook(["funnel_export.funnel"], "beartype.beartype")

# Tiny models gain nothing from a second thread, and wait for it whenever something else runs on the machine.
torch.set_num_threads(1)

# Explaining a failure reruns it under a tracer, for longer than all the tests take.
PHASES = [phase for phase in Phase if phase is not Phase.explain]

settings.register_profile("default", derandomize=True, deadline=None, max_examples=25, database=None, phases=PHASES)
settings.register_profile("thorough", derandomize=False, deadline=None, max_examples=500, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
