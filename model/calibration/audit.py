"""What operating points reached on images that chose nothing, beside what calibration expects of them."""

from collections.abc import Iterable

from msmlp.model.weights import OperatingPoint
from msmlp.model.weights.calibration import Audit, Promise, Table, promise


def audited(points: Iterable[OperatingPoint], calibrating: Table, reached: Table, digest: str) -> Audit:
    """`points` and every exit on the audit images; the tables are those of the validation and the audit images."""
    return Audit(
        images=len(reached.scores),
        digest=digest,
        exits=tuple(exit_promise(calibrating, reached, exit) for exit in range(1, reached.exits + 1)),
        operating_points={point.name: point_promise(point, reached) for point in points},
    )


def exit_promise(calibrating: Table, reached: Table, exit: int) -> Promise:
    """Of one exit, 1...K, if every image runs to it."""
    expected, there = calibrating.expect_exit(exit), reached.expect_exit(exit)
    return promise(expected.accuracy, expected.standard_error, there.accuracy, there.standard_error)


def point_promise(point: OperatingPoint, reached: Table) -> Promise:
    there = reached.expect(point.thresholds)
    return promise(point.expected_accuracy, point.standard_error, there.accuracy, there.standard_error)
