"""Backends: what runs the stages on a device, behind the protocol in model/backends/protocol.py."""
