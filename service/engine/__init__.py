"""Stage-level batching: admission and answers (facade), one device thread (worker), pure scheduling (scheduler)."""
