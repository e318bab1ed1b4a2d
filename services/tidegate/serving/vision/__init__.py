"""The vision server: images in, labels out."""

import sys

# Where openvino-telemetry is installed, importing openvino sends usage data from a forked child. A
# process that runs gRPC and threads must not be forked, and a server does not call home; None makes
# that import fail, which openvino takes for a telemetry that is not there.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
