"""The router: the program that runs rollouts."""
