"""`msmlp import`: a weights folder from ONNX graphs that were made elsewhere."""
