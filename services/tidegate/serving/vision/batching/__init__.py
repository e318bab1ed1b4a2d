"""The queue of each model, the batching decisions and the workers."""
