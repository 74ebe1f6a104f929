"""Why the accuracies expected from validation images and reached on test images differ, one suspect after another.

    python -m benchmarks.promises --weights weights/cifar10-s --data DATA --controls runs/teacher

1. Expected minus reached, by exit and operating point.
2. Near-duplicates of training images in either set: their share, and the difference without them.
3. Calibration itself: all of it on half of the validation images, judged on the other half.
4. The sets' own difficulty, by classifiers that chose nothing on either set (`--controls`, teachers or weights, and the
   nearest training image), and the difference that is left when the answers of a control are accounted for.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from msmlp.model.calibration.crossfit import fit_temperatures, folds_of, refitted, tempered
from msmlp.model.calibration.frontier import JOINT, NAMED, operating_points, solver_frontiers
from msmlp.model.data import Split, load_dataset
from msmlp.model.evaluate import Measured, measure
from msmlp.model.exits.policies import exit_policy
from msmlp.model.text import kept, percent
from msmlp.model.training.pretrained import load_teacher
from msmlp.model.weights.calibration import Table

NEAR = 0.95
"""The cosine of two images of 16 x 16 pixels without their mean above which they count as near-duplicates."""

Floats = NDArray[np.float32]


def directions(pixels: NDArray[np.uint8]) -> Floats:
    """Images [N, size, size, 3] halved, without brightness and contrast, as vectors of length 1 [N, D]."""
    images, size = len(pixels), pixels.shape[1] // 2
    small = pixels.astype(np.float32).reshape(images, size, 2, size, 2, 3).mean((2, 4)).reshape(images, -1)
    small -= small.mean(axis=1, keepdims=True)
    return np.asarray(small / (np.linalg.norm(small, axis=1, keepdims=True) + 1e-6), dtype=np.float32)


def nearest(images: Split, training: Split) -> tuple[Floats, NDArray[np.int64]]:
    """The cosine to the nearest training image, mirrored or not, and that image's label [N]."""
    cosine, label = np.full(len(images), -1, np.float32), np.zeros(len(images), np.int64)
    for pixels in (images.pixels, images.pixels[:, :, ::-1]):
        found = directions(pixels)
        for start in range(0, len(training), 5000):
            part = training.take(np.arange(start, min(start + 5000, len(training))))
            near = found @ directions(part.pixels).T
            best = near.max(axis=1)
            label = np.where(best > cosine, part.labels[near.argmax(axis=1)], label)
            cosine = np.maximum(best, cosine)
    return cosine, label


def gap(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> dict[str, float]:
    """The difference of two accuracies on different images [N], with its standard error."""
    error = float(np.sqrt(one.var() / len(one) + other.var() / len(other)))
    return {"expected_minus_reached": float(one.mean() - other.mean()), "standard_error": error}


def adjusted(correct: list[NDArray[np.bool_]], controls: list[Floats]) -> dict[str, float]:
    """The difference of the accuracies in two sets [N] that is left at equal `controls` [N, C], by least squares."""
    first = np.repeat([1.0, 0.0], [len(c) for c in correct])
    inputs = np.column_stack([first, np.ones(len(first)), np.concatenate(controls)])
    right = np.concatenate(correct).astype(float)
    fitted = np.linalg.lstsq(inputs, right, rcond=None)[0]
    error = (right - inputs @ fitted).std() * np.sqrt(np.linalg.pinv(inputs.T @ inputs)[0, 0])
    return {"expected_minus_reached": float(fitted[0]), "standard_error": float(error)}


def halves(validation: Measured, pairs: int) -> dict[str, NDArray[np.float64]]:
    """Expected minus reached of the points in NAMED, cross-fitted and in-sample, a mean per pair [pairs, 2]."""
    probabilities, labels = validation.outputs.probabilities, validation.images.labels
    score, order = exit_policy(validation.calibration.file.exit_policy), np.random.default_rng(0)

    def table(rows: NDArray[np.int64], temperatures: tuple[float, ...]) -> Table:
        answers = tempered(probabilities[rows], temperatures)
        scores = np.stack([score(answers[:, k]) for k in range(answers.shape[1])], axis=1)
        return Table(scores, validation.correct[rows], validation.gflops)

    found: dict[str, list[tuple[float, float]]] = {name: [] for name in NAMED}
    for _ in range(pairs):
        both = np.array_split(order.permutation(len(labels)), 2)
        for own, other in (both, both[::-1]):
            fitted = fit_temperatures(probabilities[own], labels[own])
            chosen, judged = table(own, fitted), table(other, fitted)
            folds = folds_of(validation.images.identities[own])
            made = refitted(validation.calibration.file.exit_policy, probabilities[own], labels[own], chosen, folds)
            for point in operating_points(chosen, solver_frontiers(chosen)[JOINT], made, validation.gflops):
                if point.name in found:
                    reached = judged.expect(point.thresholds).accuracy
                    in_sample = chosen.expect(point.thresholds).accuracy
                    found[point.name].append((point.expected_accuracy - reached, in_sample - reached))
    return {name: np.array(rows).reshape(pairs, 2, 2).mean(axis=1) for name, rows in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="with a test split")
    parser.add_argument("--controls", type=Path, nargs="*", default=[], help="teachers or weights of this data")
    parser.add_argument("--pairs", type=int, default=20, help="pairs of halves")
    options = parser.parse_args()
    sets = [measure(options.weights, options.data, split, "cpu") for split in ("val", "test")]
    validation, test = sets
    counts = f"{len(validation.images)} validation and {len(test.images)} test images"
    print(f"{options.weights}, {counts}: expected minus reached ± s.e., in points")
    print(_exits([row["promise"] for row in test.exits()]))
    print("  ".join(f"{point.name} {kept(test.promise(point) or {})}" for point in test.named_points()))

    dataset = load_dataset(options.data, validation.weights.manifest.views)
    trained = dataset.partition(validation.weights.manifest.training["validation"]["seed"])
    training = _trained_on(validation, dataset.train, trained.training)
    near = [nearest(each.images, training) for each in sets]
    shares = _both([cosine > NEAR for cosine, _ in near])
    print(f"near one of {len(training)} training images (cosine above {NEAR}): {shares}; without them")
    far = [each.correct[cosine <= NEAR] for each, (cosine, _) in zip(sets, near, strict=True)]
    print(_exits([gap(far[0][:, k], far[1][:, k]) for k in range(far[0].shape[1])]))

    print(f"calibrated on half of the validation images, judged on the other, {options.pairs} pairs")
    for name, rows in halves(validation, options.pairs).items():
        errors = rows.std(axis=0, ddof=1) / np.sqrt(options.pairs)
        both = zip(("cross-fitted", "in-sample"), 100 * rows.mean(axis=0), 100 * errors, strict=True)
        print(f"{name}: " + ", ".join(f"{kind} {mean:+.2f} ± {error:.2f}" for kind, mean, error in both))

    right = [label == each.images.labels for each, (_, label) in zip(sets, near, strict=True)]
    print(f"the nearest training image: {_both(right)}, difference {kept(gap(*right))}")
    for folder in options.controls:
        answers = [_control(folder, each.images) for each in sets]
        right = [each[:, 0] > 0 for each in answers]
        apart = percent(float((right[0] != validation.correct[:, -1]).mean()))
        print(f"{folder}: {_both(right)}, difference {kept(gap(*right))}")
        print(f"of it and the last exit one alone is right on {apart} of the validation images; at equal answers")
        print(_exits([adjusted([each.correct[:, k] for each in sets], answers) for k in range(far[0].shape[1])]))


def _trained_on(measured: Measured, train: Split, training: Split) -> Split:
    """The training images of the weights: those of older weights include what is audited now."""
    images = measured.weights.manifest.training["images"]
    if images == len(training):
        return training
    held = {identity.tobytes() for identity in measured.images.identities}
    return train.take(np.array([identity.tobytes() not in held for identity in train.identities]))


def _control(folder: Path, images: Split) -> Floats:
    """Whether a network is right, and its probability of the label and that one's logarithm [N, 3]."""
    teacher, rows = load_teacher(folder, torch.device("cpu")), []
    for start in range(0, len(images), 500):
        pixels = torch.from_numpy(images.pixels[start : start + 500].transpose(0, 3, 1, 2).copy())
        probabilities = teacher.targets(pixels.float() / 255).logits.softmax(dim=1).numpy()
        labels = images.labels[start : start + 500]
        own = probabilities[np.arange(len(labels)), labels]
        rows.append(np.stack([probabilities.argmax(axis=1) == labels, own, np.log(own + 1e-3)], axis=1))
    return np.concatenate(rows).astype(np.float32)


def _both(sets: list[NDArray[np.bool_]]) -> str:
    return " and ".join(percent(float(each.mean())) for each in sets)


def _exits(rows: list[dict[str, float]]) -> str:
    return "  ".join(f"exit {k} {kept(row)}" for k, row in enumerate(rows, 1))


if __name__ == "__main__":
    main()
