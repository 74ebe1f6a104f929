"""Colour profiles of three curves and a matrix, and what they do, by the formulas of their standards."""

import struct
from collections.abc import Sequence

import numpy as np

from tests.pictures.shown import Numbers

Matrix = Sequence[Sequence[float]]
P3_TO_XYZ = ((0.51512, 0.29198, 0.1571), (0.2412, 0.69225, 0.06657), (-0.00105, 0.04189, 0.78407))
SRGB_TO_XYZ = ((0.43607, 0.38515, 0.14307), (0.22249, 0.71687, 0.06061), (0.01392, 0.09708, 0.7141))
"""Of linear colours, to the white D50 of profiles."""


def matrix_profile(name: str, to_xyz: Matrix) -> bytes:
    """With sRGB's curve."""
    text = b"mluc\0\0\0\0" + struct.pack(">II2s2sII", 1, 12, b"en", b"US", 2 * len(name), 28) + name.encode("utf-16-be")
    curve = b"para\0\0\0\0\0\3\0\0" + b"".join(map(_fixed, (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)))
    columns = [b"XYZ \0\0\0\0" + b"".join(_fixed(row[column]) for row in to_xyz) for column in range(3)]
    white = b"".join(map(_fixed, (0.9642, 1, 0.8249)))
    tags = {b"desc": text, b"cprt": text, b"wtpt": b"XYZ \0\0\0\0" + white}
    tags |= dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)) | dict.fromkeys(
        (b"rTRC", b"gTRC", b"bTRC"), curve
    )
    table, body, start = b"", b"", 132 + 12 * len(tags)
    for tag, content in tags.items():
        table += struct.pack(">4sII", tag, start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(">I4sI4s4s4s12x4s28x", start + len(body), b"appl", 4 << 24, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    return (head + white).ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def _fixed(number: float) -> bytes:
    return struct.pack(">i", round(number * 2**16))


def to_srgb(p3: Numbers) -> Numbers:
    """Display P3 0-255 → sRGB 0-255, not rounded."""
    coded = p3 / 255
    linear = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    other = (linear @ np.array(P3_TO_XYZ).T @ np.linalg.inv(np.array(SRGB_TO_XYZ)).T).clip(0, 1)
    return 255 * np.where(other <= 0.0031308, other * 12.92, 1.055 * other ** (1 / 2.4) - 0.055)


DISPLAY_P3 = matrix_profile("Display P3", P3_TO_XYZ)
SRGB_LIKE = matrix_profile("my screen", SRGB_TO_XYZ)
