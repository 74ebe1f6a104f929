"""What runs stages on a device, behind one small protocol (model/backends/protocol.py)."""
