"""The model card and the gallery of a weights folder: `msmlp report card` and `msmlp report gallery`."""
