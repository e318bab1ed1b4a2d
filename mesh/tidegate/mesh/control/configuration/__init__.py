"""What is configured: object files, edits, the applied configuration, shifts and the journal."""
