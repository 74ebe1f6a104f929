"""What several commands print."""

import pytest

from msmlp.model.cli.common import say_points


def test_every_promise_has_its_standard_error_and_points_that_coincide_say_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    same = {"expected_accuracy": 14 / 15, "standard_error": 0.0785, "mean_gflops": 0.0123, "exit_share": [0.25, 0.75]}
    say_points(
        [
            {"name": "fast", **same, "mean_ms": 0.5, "same_as": "accurate"},
            {"name": "accurate", **same, "mean_ms": None, "same_as": None},
        ]
    )
    head, fast, accurate = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["point", "accuracy", "±", "s.e."]
    assert fast.split()[:6] == ["fast", "93.33", "%", "±", "7.85", "0.0123"]
    assert fast.endswith("0.5000  25 % / 75 %  same as accurate")
    assert accurate.endswith("  25 % / 75 %")
    assert fast.index("25 %") == accurate.index("25 %")
