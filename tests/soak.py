"""Whether this run is `make soak`, which has the long tests."""

import os

SOAK = bool(os.environ.get("FUNNEL_EXPORT_SOAK"))
