"""Several processes that answer, and the supervisor above them. No web packages here: the supervisor needs none."""
