"""The command line, ``tidegate``: calls the servers, starts them, and finds further commands."""
