"""Commands that show traces."""
