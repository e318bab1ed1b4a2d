"""The vision server: images in, labels out."""

import sys

# If openvino-telemetry is installed, importing openvino sends usage data from a forked child. A
# process with gRPC and threads must not fork, and a server must not call home. None makes that
# import fail, and openvino then works without telemetry.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
