"""Engines as processes, each for one or many front ends.

`host.py` starts and restarts an engine's process (`child.py`), whose core speaks through `port.py`; `remote.py` is a
front end's side of it, and `group.py` that of all engines together. `wire.py` and `memory.py` are what crosses,
`peers.py` what belongs to which front end.
"""
