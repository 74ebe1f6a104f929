"""What the numbers in docs/results.md come from."""
