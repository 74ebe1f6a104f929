"""The engine as a process: the parent's side (supervisor.py), the child's side (child.py), what crosses (wire.py)."""
