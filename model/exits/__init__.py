"""When an image leaves: the exit rule and the exit policies."""
