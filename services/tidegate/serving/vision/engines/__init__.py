"""The protocol of an inference engine, and the engines that implement it."""
