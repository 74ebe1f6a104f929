"""Stage-level batching: AsyncEngine, the engine core on a thread or in a process, and the scheduler."""
