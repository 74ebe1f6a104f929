"""What `msmlp train` says before it trains: the images found, what is odd about them, and how long it will take."""

import sys
import time
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace

import torch

from msmlp.model.data.dataset import Dataset, Findings, Partition, Split, shared
from msmlp.model.text import printable
from msmlp.model.training.batches import Arrays
from msmlp.model.training.loop import Learner
from msmlp.model.training.run_log import device_name

MOST_CLASSES = 20
"""With more, only the smallest and the largest classes have a line."""
MOST_UNREAD = 0.1
"""A larger share of unread images in a class is worth a warning."""
MOST_WARNED = 5
"""Classes of which that is said."""
MOST_UNEVEN = 10
"""A largest class with this many times the images of the smallest is worth a warning."""
TRIAL_IMAGES = 64
"""At most this many are augmented and trained on, to estimate the time of a run."""
SLOW_SECONDS = 5.0
"""Of a first step that needs no second one: what a first one costs more is little beside it."""


def announce(dataset: Dataset, partition: Partition) -> None:
    """Print the data set, and warnings, to stderr."""
    lines = [*_described(dataset, partition), *(f"warning: {text}" for text in _oddities(dataset, partition))]
    sys.stderr.write("\n".join(map(printable, lines)) + "\n")


def announce_run(learner: Learner, training: Arrays, epochs_left: float) -> None:
    """Print the device, and on a CPU, where a trial of a moment is enough, how long the epochs that are left take."""
    where = f"training on {device_name(learner.device)}, {str(learner.dtype).removeprefix('torch.')}"
    if learner.device.type == "cpu" and epochs_left > 0:
        seconds = _seconds_per_image(learner, training) * len(training.labels) * epochs_left
        where += f": about {_duration(seconds)} for {epochs_left:.0f} epoch{'' if epochs_left == 1 else 's'}"
    sys.stderr.write(where + "\n")


def _described(dataset: Dataset, partition: Partition) -> Iterator[str]:
    parts = {"training": partition.training, "validation": partition.validation}
    parts |= {name: part for name, part in (("audit", partition.audit), ("test", dataset.test)) if part is not None}
    yield f"{dataset.source}: {len(dataset.classes)} classes, {sum(map(len, parts.values()))} images"
    yield from _table(dataset, parts)
    if partition.no_audit:
        yield f"no audit set: {partition.no_audit}"
    found = dataset.findings
    if found.others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(found.others).most_common(8))
        yield f"files not used: {kinds}"
    if found.unused:
        yield f"not used, as only train/, val/, test/ and audit/ with a folder per class are: {', '.join(found.unused)}"
    if found.sizes:
        small, large = (f"{width} x {height}" for width, height in found.sizes)
        size = dataset.train.pixels.shape[1]
        sizes = small if small == large else f"{small} to {large}"
        yield f"sizes: {sizes} pixels; the network sees the centre square at {size} x {size}"
    if found.nested:
        more = f" and {len(found.nested) - 1} more" if len(found.nested) > 1 else ""
        yield f"including images in subfolders: {found.nested[0]}{more}"


def _table(dataset: Dataset, parts: dict[str, Split]) -> Iterator[str]:
    """One line per class: its images in each part, and those that could not be read."""
    counts = {name: Counter(part.labels.tolist()) for name, part in parts.items()}
    unread = _unread(dataset.findings)
    columns = [*parts, *(["unread"] if unread else [])]
    width = max(len("class"), *(len(name) for name in dataset.classes))
    yield "  ".join([f"{'class':{width}}", *(f"{name:>10}" for name in columns)])
    labels = list(range(len(dataset.classes)))
    if len(labels) > MOST_CLASSES:
        by_size = sorted(labels, key=lambda label: counts["training"][label])
        labels = by_size[: MOST_CLASSES // 2] + by_size[-MOST_CLASSES // 2 :]
        yield f"(the {MOST_CLASSES // 2} smallest and the {MOST_CLASSES // 2} largest of {len(dataset.classes)})"
    for label in labels:
        name = dataset.classes[label]
        numbers = [counts[part][label] for part in parts] + ([unread[name]] if unread else [])
        yield "  ".join([f"{name:{width}}", *(f"{number:>10}" for number in numbers)])


def _unread(findings: Findings) -> Counter[str]:
    """Unread images of each class, over all splits."""
    return Counter(each.path.parts[1] for each in findings.unread)


def _oddities(dataset: Dataset, partition: Partition) -> Iterator[str]:
    read = Counter(dataset.train.labels.tolist())
    lost = []
    for name, count in _unread(dataset.findings).items():
        images = sum(int((part.labels == dataset.classes.index(name)).sum()) for part in _splits(dataset))
        if count > MOST_UNREAD * (count + images):
            lost.append(f"{name}: {images} images can be read and {count} cannot")
    yield from lost[:MOST_WARNED]
    if len(lost) > MOST_WARNED:
        yield f"the same holds for {len(lost) - MOST_WARNED} more classes"
    small, large = min(read, key=lambda label: read[label]), max(read, key=lambda label: read[label])
    if read[large] >= MOST_UNEVEN * read[small]:
        yield (
            f"{dataset.classes[small]} has {read[small]} images and {dataset.classes[large]} {read[large]}; the "
            "network may neglect the smaller class: evaluate shows its accuracy and the balanced accuracy"
        )
    for name, own in (("val", dataset.val), ("audit", dataset.audit), ("test", dataset.test)):
        if own is not None and (count := shared(own, partition.training)):
            known = f"{count} of {len(own)} images in {name}/ are in train/ as well"
            yield f"{known}; the accuracy on them may be too high"


def _splits(dataset: Dataset) -> list[Split]:
    return [split for split in (dataset.train, dataset.val, dataset.audit, dataset.test) if split is not None]


def _seconds_per_image(learner: Learner, training: Arrays) -> float:
    """Of augmentation, the teacher and a training step, measured once on a few images."""
    some = Arrays(training.pixels[:TRIAL_IMAGES], training.labels[:TRIAL_IMAGES])
    objective, seconds = deepcopy(learner.objective), list[float]()
    while not seconds or (len(seconds) < 2 and seconds[0] < SLOW_SECONDS):  # the first warms up
        start = time.perf_counter()
        views = replace(learner.batches).of_epoch(some, 0)
        made = time.perf_counter()
        objective(_floats(views), False).backward()
        seconds.append((made - start) / learner.recipe.epochs_per_view + time.perf_counter() - made)
    return seconds[-1] / len(some.labels)


def _floats(views: list[torch.Tensor]) -> list[torch.Tensor]:
    return [view.float() if view.is_floating_point() else view for view in views]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(2, round(seconds))} seconds"
    return f"{round(seconds / 60)} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
