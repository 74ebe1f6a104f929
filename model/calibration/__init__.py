"""Choosing thresholds on validation images: solvers, the frontier they span, and `msmlp calibrate`."""
