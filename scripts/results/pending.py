"""What the GPU campaign will fill. A row goes when a run, or a benchmark, that speaks for it is there."""

from collections.abc import Callable
from dataclasses import dataclass

from msmlp.model.report.run import Run
from scripts.results.runs import is_plain
from scripts.results.sources import Sources
from scripts.results.text import NOT_YET, table

HEAD = """## Not yet measured

`benchmarks/gpu_campaign` trains, evaluates and benches all of it as one command. A row goes from here when its run is
in a table above.
"""
FULL_SCHEDULE = 300
"""Epochs of the paper's recipe."""
SHORT_SCHEDULE = 60
"""Epochs that the campaign gives an ablation, at least."""
DATA = ("CIFAR-10", "CIFAR-100")


@dataclass(frozen=True)
class Pending:
    """A measurement, and what tells that it was made."""

    what: str
    made: Callable[[Sources], bool]


def pending_lines(sources: Sources) -> list[str]:
    """A table of what is missing."""
    missing = [pending for pending in PENDING if not pending.made(sources)]
    if not missing:
        return []
    return [*HEAD.splitlines(), "", *table(["what", "state"], [[pending.what, NOT_YET] for pending in missing])]


def _run(fits: Callable[[Run], bool], data: str | None = None) -> Callable[[Sources], bool]:
    """Whether there is a finished run on a GPU that fits, on this data set or any."""

    def made(sources: Sources) -> bool:
        return any(_on_gpu(run) and (data is None or _is_of(run, data)) and fits(run) for run in sources.runs)

    return made


def _on_gpu(run: Run) -> bool:
    return run.finished and run.device is not None and not run.device.startswith("cpu")


def _is_of(run: Run, data: str) -> bool:
    # "CIFAR-10 (python)" and "CIFAR-100 (python)" begin alike.
    return (run.data or "").split(" ")[0] == data


def _own(run: Run) -> bool:
    """Of our own search: no preset of the paper's, and not the tests' smallest."""
    return run.kind == "cascade" and (run.preset or "").split("-")[0] not in ("paper", "mixer", "tiny")


def _fine(run: Run) -> bool:
    return _own(run) and [stage["patch"] for stage in run.network["stages"]][-1:] == [2]


def _wide(run: Run) -> bool:
    return _own(run) and [stage["width"] for stage in run.network["stages"]] == [128, 128, 256]


def _alone(run: Run) -> bool:
    return _own(run) and len(run.exits) > 1 and run.teacher is None


def _of_preset(preset: str) -> Callable[[Run], bool]:
    return lambda run: run.preset == preset and run.recipe == "paper" and (run.epochs or 0) >= FULL_SCHEDULE


def _ablation(reuse: str, norm: bool) -> Callable[[Run], bool]:
    def fits(run: Run) -> bool:
        trained = run.preset == "paper-s" and run.recipe == "paper" and (run.epochs or 0) >= SHORT_SCHEDULE
        return trained and (run.network.get("reuse"), run.network.get("reuse_norm")) == (reuse, norm)

    return fits


def _bench(sources: Sources) -> bool:
    return any(not bench["device"].startswith("cpu") for bench in sources.benches)


def _pair(sources: Sources) -> bool:
    return any(
        not pair["device"].startswith("cpu")
        and (pair["chosen"], pair["max_batch"]) == ("as accurate", 16)
        and pair["data"] is not None
        for pair in sources.pairs
    )


def _never(_: Sources) -> bool:
    """Nothing in these sources can say it: the row is taken out by hand, with the figures put in."""
    return False


PENDING = (
    *(
        Pending(f"a teacher, {data}", _run(lambda run: run.kind == "teacher" and run.preset != "teacher-tiny", data))
        for data in DATA
    ),
    *(
        Pending(f"the frontier's cascades, {data}", _run(lambda run: _own(run) and len(run.exits) > 1, data))
        for data in DATA
    ),
    *(
        Pending(
            f"plain Mixers of the same search and recipe, {data}", _run(lambda run: _own(run) and is_plain(run), data)
        )
        for data in DATA
    ),
    *(Pending(f"the frontier's cascades without distillation, {data}", _run(_alone, data)) for data in DATA),
    Pending("256 tokens at the last stage", _run(_fine)),
    Pending("16, 64, 64 tokens of width 128, 128, 256", _run(_wide)),
    Pending("at least 3 times fewer multiply-adds than the best plain Mixer at its accuracy", _pair),
    Pending("at least 2.5 times the images/s of that Mixer at batch 16, on the same GPU in one run", _pair),
    Pending("images/s and latency of the engine on a GPU, in bf16", _bench),
    Pending("training on a GPU: images/s and busy share (at least 80 %)", _never),
    Pending("several models on one GPU at once", _never),
    *(
        Pending(f"`{preset}` on the paper's full schedule, {data}", _run(_of_preset(preset), data))
        for preset in ("paper-s", "mixer-s")
        for data in DATA
    ),
    *(Pending(f"`{preset}`, CIFAR-10", _run(_of_preset(preset), "CIFAR-10")) for preset in ("paper-b", "mixer-b")),
    *(
        Pending(f"the paper's Table {number}: {what}, at a shorter schedule", _run(_ablation(*switches), "CIFAR-10"))
        for number, what, switches in (
            (3, "no reuse", ("none", True)),
            (4, "reuse in the first block alone", ("first", True)),
            (5, "reuse without the LayerNorm", ("all", False)),
        )
    ),
)
