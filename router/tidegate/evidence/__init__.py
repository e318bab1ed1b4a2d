"""Whether one model version does worse than another: anytime-valid tests on counts of traffic."""
