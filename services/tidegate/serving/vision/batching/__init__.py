"""From a request to its result: the queue of each model, the batching decisions and the workers."""
