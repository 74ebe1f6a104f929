"""`msmlp bench`: throughput and latency with their baselines, everything compared measured in one run."""
