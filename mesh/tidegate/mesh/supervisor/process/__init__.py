"""One process under supervision: its state machine, its parent-death guard, its probes, its log."""
