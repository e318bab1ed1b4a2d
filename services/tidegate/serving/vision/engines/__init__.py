"""What runs a model: the protocol of an engine, and the engines that implement it."""
