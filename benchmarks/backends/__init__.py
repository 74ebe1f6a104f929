"""torch beside ONNX Runtime: what a stage takes, what a service holds, how soon it answers, and what it says."""
