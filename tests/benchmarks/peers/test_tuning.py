from benchmarks.peers.servers import Tuning, tune


def test_what_brings_more_than_noise_is_kept_and_built_upon() -> None:
    measured = []

    def speed(settings: Tuning) -> float:
        measured.append(settings)
        return 100.0 * settings["threads"] + {8: -50, 16: 0, 32: 1}[settings["batch"]]

    steps = (({"threads": 2}, {"threads": 3}), ({"batch": 8}, {"batch": 32}))
    best, tried = tune({"threads": 1, "batch": 16}, steps, speed)
    assert best == {"threads": 3, "batch": 16}  # 301 instead of 300 is noise
    assert measured[-2:] == [{"threads": 3, "batch": 8}, {"threads": 3, "batch": 32}]
    assert [each["settings"] for each in tried] == measured
    assert [each["requests_per_second"] for each in tried] == [100, 200, 300, 250, 301]


def test_without_steps_the_start_is_what_there_is() -> None:
    assert tune({"pool": 2}, (), lambda _: 7.0) == (
        {"pool": 2},
        [{"settings": {"pool": 2}, "requests_per_second": 7.0}],
    )
