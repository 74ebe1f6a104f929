"""Our service compared with the servers that users would choose instead."""
