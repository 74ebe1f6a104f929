"""Which images may calibrate and evaluate: those that training held out."""

from msmlp.model.data import Dataset, Split
from msmlp.model.data.dataset import split_digest
from msmlp.model.errors import DataError, WeightsError
from msmlp.model.weights import Weights


def validation_images(weights: Weights, dataset: Dataset) -> Split:
    """The images training held out, found again in `dataset`; DataError when they are others.

    Any other images may be ones the weights were trained on, and would flatter every figure.
    """
    check_classes(weights, dataset)
    held = weights.manifest.training.get("validation")
    if not isinstance(held, dict) or not {"seed", "images", "digest"} <= held.keys():
        raise WeightsError(f"the manifest of {weights.folder} does not say which images were held out in training")
    _, validation = dataset.train_and_validation(held["seed"])
    if split_digest(validation) != held["digest"]:
        raise DataError(
            f"the validation images of this data are not those held out in training "
            f"({len(validation)} images, digest {split_digest(validation)[:12]}; "
            f"the manifest has {held['images']}, {held['digest'][:12]}): use the data set of the training"
        )
    return validation


def check_classes(weights: Weights, dataset: Dataset) -> None:
    """DataError unless the data has the weights' classes, in their order."""
    if dataset.classes != weights.manifest.classes:
        odd = sorted(set(dataset.classes) ^ set(weights.manifest.classes))
        raise DataError(f"the data's classes are not the weights' classes: {', '.join(odd[:5]) or 'another order'}")
