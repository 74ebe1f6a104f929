"""The parts of docs/results.md; scripts/results_page.py puts them together."""
