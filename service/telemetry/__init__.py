"""Who watches requests: metrics, statistics, the access log and traces."""
