"""The folder ``.tidegate``: the state that the supervisor publishes, and the commands it takes."""
