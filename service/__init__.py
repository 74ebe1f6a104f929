"""The server: HTTP façade, engine, metrics."""
