"""The service: HTTP and gRPC front ends, engine, telemetry."""
