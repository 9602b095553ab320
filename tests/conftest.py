"""Settings for every test: shapes checked by jaxtyping, hypothesis profiles, and two threads."""

import os

import torch
from hypothesis import settings
from jaxtyping import install_import_hook

# Before any test imports the package: the hook sees only modules loaded after it.
install_import_hook(["funnel_export.funnel"], "beartype.beartype")

torch.set_num_threads(2)

settings.register_profile("default", derandomize=True, deadline=None, max_examples=25, database=None)
settings.register_profile("thorough", deadline=None, max_examples=500, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
