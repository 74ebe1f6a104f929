"""Data sets on disk → arrays: image folders and the official CIFAR layouts behind one function, `load_dataset`."""

from msmlp.model.data.dataset import Dataset, Split
from msmlp.model.data.loading import load_dataset

__all__ = ["Dataset", "Split", "load_dataset"]
