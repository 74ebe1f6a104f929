"""`msmlp export`: every stage as an ONNX graph in the weights folder."""

from msmlp.model.export.folder import TOLERANCES, export, refresh_graphs

__all__ = ["TOLERANCES", "export", "refresh_graphs"]
