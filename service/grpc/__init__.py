"""The Open Inference Protocol over gRPC, with the extra `grpc`. Only these modules know gRPC and protobuf."""
