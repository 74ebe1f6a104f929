"""What stands behind `msmlp.load` and `msmlp.Client`: one answer and one error, in this process or from a service."""
