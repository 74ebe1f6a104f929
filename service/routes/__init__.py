"""HTTP routes, thin over the service's own functions."""
