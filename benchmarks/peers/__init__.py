"""Our service beside the servers that users would choose instead."""
