"""``POST /v1/images:classify``: image files in, labels out, without gRPC."""
