"""Commands that start and stop the servers on this machine."""
