"""`msmlp export`: every stage as an ONNX graph in the weights folder."""
