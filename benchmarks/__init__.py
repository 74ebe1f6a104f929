"""The programs behind benchmarks/README.md."""
