"""``tidegate.mesh.v1.MeshService``: the API of the controller."""
