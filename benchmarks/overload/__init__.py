"""An open-loop sweep through overload."""
