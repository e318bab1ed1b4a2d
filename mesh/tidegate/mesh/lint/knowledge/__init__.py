"""What lint knows about programs: the gRPC services of protos, and the metrics of exporters."""
