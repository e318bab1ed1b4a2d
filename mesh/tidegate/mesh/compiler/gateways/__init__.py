"""Where traffic enters the mesh, and which VirtualServices hold there."""
