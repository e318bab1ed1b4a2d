"""Commands of the mesh: check and explain its objects, show its state, move its traffic."""
