"""Metrics, statistics, the access log and traces."""
