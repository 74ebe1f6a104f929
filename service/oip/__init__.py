"""The Open Inference Protocol: requests and answers as bytes, and what is said of the model. Knows nothing of HTTP."""
