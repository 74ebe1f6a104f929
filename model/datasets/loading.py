"""Which kind of data set a path is, and reading it."""

from pathlib import Path

from msmlp.model.datasets.cifar import load_cifar
from msmlp.model.datasets.dataset import Dataset
from msmlp.model.datasets.folder import load_folder
from msmlp.model.errors import DataError


def load_dataset(path: Path, size: int) -> Dataset:
    """Read an image folder, a CIFAR python folder or its `.tar.gz`, images resized to `size`.

    Raises:
        DataError: with the path and what is wrong with it.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist")
    dataset = load_cifar(path, size)
    if dataset is not None:
        return dataset
    if not path.is_dir():
        raise DataError(f"{path} is neither a folder nor a CIFAR .tar.gz")
    if not (path / "train").is_dir():
        raise DataError(
            f"{path} is no data set: expected train/<class>/*, cifar-10-batches-py/, cifar-100-python/ or their .tar.gz"
        )
    return load_folder(path, size)
