"""The Open Inference Protocol, for REST and gRPC: requests, responses and metadata. Knows nothing about HTTP."""
