"""The engine as a process of its own: a supervisor (supervisor.py), one child's life (link.py), the child (child.py).

Pixels cross in shared memory (memory.py), everything else as small pickled frames over two pipes (wire.py).
"""
