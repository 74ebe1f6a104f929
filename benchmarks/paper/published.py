"""What the paper prints: Zhang et al., Multi-Scale MLP-Mixer for image classification, 2022. Accuracies are shares."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A network at an exit (1...K): its accuracy by data set, and its cumulative GFLOPs as printed."""

    label: str
    network: str
    exit: int
    accuracy: dict[str, float]
    gflops: str
    base: str | None = None
    """The network that an arrow of the GFLOPs compares with."""


TABLES = {
    "table_1": (
        Row("Mixer, 4 patches (16x16)", "mixer-16", 1, {"cifar10": 0.6653}, "0.07"),
        Row("Mixer, 16 patches (8x8)", "mixer-8", 1, {"cifar10": 0.7465}, "0.30"),
        Row("Mixer, 64 patches (4x4)", "mixer-4", 1, {"cifar10": 0.8187}, "1.21"),
    ),
    "table_3": (
        Row("reuse, exit 1 (patch 16)", "all", 1, {"cifar100": 0.3730}, "0.07"),
        Row("reuse, exit 2 (patch 8)", "all", 2, {"cifar100": 0.4746}, "0.24 (↑14.3 %)", "none"),
        Row("reuse, exit 3 (patch 4)", "all", 3, {"cifar100": 0.5581}, "0.79 (↑9.7 %)", "none"),
        Row("no reuse, exit 1", "none", 1, {"cifar100": 0.3946}, "0.07"),
        Row("no reuse, exit 2", "none", 2, {"cifar100": 0.4617}, "0.21"),
        Row("no reuse, exit 3", "none", 3, {"cifar100": 0.5097}, "0.72"),
    ),
    "table_4": (
        Row("reuse in the first block", "first", 3, {"cifar10": 0.8144, "cifar100": 0.520}, "0.73"),
        Row("in all blocks", "all", 3, {"cifar10": 0.8158, "cifar100": 0.5581}, "0.79 (↑8.2 %)", "first"),
    ),
    "table_5": (
        Row("without LN in f", "no-norm", 3, {"cifar10": 0.807, "cifar100": 0.5465}, ""),
        Row("with LN", "all", 3, {"cifar10": 0.8158, "cifar100": 0.5581}, ""),
    ),
}

ACCURACIES = {
    (row.network, row.exit, data): accuracy
    for rows in TABLES.values()
    for row in rows
    for data, accuracy in row.accuracy.items()
}

TABLE_2 = {
    ("s", "cifar10"): ((0.8149, 774), (0.8158, 1064), "1.37"),
    ("s", "cifar100"): ((0.5111, 746), (0.5581, 1032), "1.38"),
    ("b", "cifar10"): ((0.8151, 292), (0.8187, 400), "1.36"),
    ("b", "cifar100"): ((0.5234, 292), (0.5526, 406), "1.39"),
}
"""Accuracy and images/s, on an NVIDIA 1070 with batches of 16, of the Mixer and of the cascade, and their ratio."""
