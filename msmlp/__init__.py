"""MSMLP: image classification that spends compute only where an image needs it."""
