"""`msmlp.load` and `msmlp.Client`: the same answers and errors, in this process or from a service."""
