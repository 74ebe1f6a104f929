"""Data sets on disk → arrays: `load_dataset` reads image folders and the official CIFAR layouts."""

from msmlp.model.data.dataset import Dataset, Split
from msmlp.model.data.loading import load_dataset

__all__ = ["Dataset", "Split", "load_dataset"]
