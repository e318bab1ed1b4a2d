"""The Open Inference Protocol over HTTP, for KServe's and Triton's clients, with binary tensors."""
