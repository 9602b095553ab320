"""Import this before OpenVINO: without its telemetry package, importing it sends nothing."""

import sys

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
