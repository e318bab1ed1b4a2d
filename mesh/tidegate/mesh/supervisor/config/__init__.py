"""What to run: ``tidegate.yaml``, the kinds of servers, and the check of the ports."""
