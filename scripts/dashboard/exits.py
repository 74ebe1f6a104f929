"""What each exit costs, what exits save, and whether early answers hold."""

from scripts.dashboard.panels import GFLOPS, GFLOPS_PER_SECOND, IMAGES, SECONDS, SHARE, Column, Panel, Row, Table
from scripts.dashboard.promql import increase, quantile, quantile_over_range, rate, share

INSTANCE = ("job", "instance")
IMAGES_OF, LEFT = "msmlp_images_total{$here}", 'msmlp_images_total{$here, exit!="none"}'
LATENCY = "msmlp_image_seconds_bucket{$here}"
SPENT, EXPECTED, SAVED = (f"msmlp_gflops{kind}_total{{$here}}" for kind in ("", "_expected", "_saved"))
COMPUTE, RAN = (f"msmlp_stage_{metric}_sum{{$here}}" for metric in ("compute_seconds", "batch_size"))


def priced(left: str) -> str:
    """Images that left, by exit, as GFLOPs; each instance has its own model, and prices."""
    return f"sum by (exit) ({left} * on (job, instance, exit) group_left () msmlp_exit_gflops{{$here}})"


def by_exit(of_stages: str) -> str:
    """A stage by the exit at its end."""
    return f'sum by (exit) (label_replace({of_stages}, "exit", "$1", "stage", "(.*)"))'


EXITS = Table(
    "Exits",
    "Each exit over the time shown: how many images left there, what one of them cost from the first stage to here, "
    "and the exit's share of all GFLOPs spent. The device time is that of the exit's own stage, an image.",
    ("exit",),
    (
        Column("images", increase(IMAGES_OF, "exit")),
        Column("share of images", share(increase(IMAGES_OF, "exit")), SHARE),
        Column("an image costs", "max by (exit) (msmlp_exit_gflops{$here})", GFLOPS),
        Column("share of GFLOPs", share(priced(increase(LEFT, *INSTANCE, "exit"))), SHARE),
        Column(
            "device time of the stage", by_exit(f"{increase(COMPUTE, 'stage')} / {increase(RAN, 'stage')}"), SECONDS
        ),
        Column("median latency", quantile_over_range("0.5", LATENCY, "exit"), SECONDS),
        Column("p99 latency", quantile_over_range("0.99", LATENCY, "exit"), SECONDS),
    ),
)

COST_OF_EXITS = Row(
    "What does each exit cost?",
    (
        EXITS,
        Panel(
            "Images by exit",
            "The share of answered images that left at each exit; `none` expired before the first.",
            ((share(rate(IMAGES_OF, "exit")), "exit {{exit}}"),),
            SHARE,
            width=6,
            top=1,
            stacked=True,
        ),
        Panel(
            "GFLOPs by exit",
            "What is spent on the images of each exit. A late exit with few images can cost more than an early one "
            "with many.",
            ((priced(rate(LEFT, *INSTANCE, "exit")), "exit {{exit}}"),),
            GFLOPS_PER_SECOND,
            width=6,
            stacked=True,
        ),
        Panel(
            "Device time an image, by stage",
            "A stage's time over the images in its batches. It falls when batches grow.",
            ((f"{rate(COMPUTE, 'stage')} / {rate(RAN, 'stage')}", "stage {{stage}}"),),
            SECONDS,
            width=6,
        ),
        Panel(
            "Device time by stage",
            "The part of its time that a device spends in each stage, mean of the instances. Near 100 % it is busy.",
            ((f"{rate(COMPUTE, 'stage')} / on () group_left () count(msmlp_engine_up{{$here}})", "stage {{stage}}"),),
            SHARE,
            width=6,
            stacked=True,
        ),
    ),
)

SAVINGS = Row(
    "What do exits save?",
    (
        Panel(
            "Cost of an image",
            "GFLOPs spent an image; what calibration expects of the operating points that were asked for; and the full "
            "model, which runs every stage for every image.",
            (
                (f"{rate(SPENT)} / {rate(IMAGES_OF)}", "spent"),
                (f"{rate(EXPECTED)} / {rate(IMAGES_OF)}", "expected"),
                (f"({rate(SPENT)} + {rate(SAVED)}) / {rate(IMAGES_OF)}", "full model"),
            ),
            GFLOPS,
        ),
        Panel(
            "Saved against the full model",
            "The share of the full model's GFLOPs that early exits made needless.",
            ((f"{rate(SAVED)} / ({rate(SAVED)} + {rate(SPENT)})", "saved"),),
            SHARE,
            top=1,
        ),
        Panel(
            "Why images left",
            "confident: the score reached the threshold. final: the last stage. max_exit: the request's own bound. "
            "deadline: the next stage would have come too late. expired: no exit was reached in time.",
            ((rate(IMAGES_OF, "reason"), "{{reason}}"),),
            IMAGES,
            stacked=True,
        ),
    ),
)

TRUST = Row(
    "Are early answers still right?",
    (
        Panel(
            "Agreement with the last exit",
            "Of early answers that were run to the end (--shadow), the share that stayed. A fall says that images are "
            "no longer like those calibrated on.",
            (("min by (exit) (msmlp_shadow_agreement{$here})", "exit {{exit}}"),),
            SHARE,
            top=1,
        ),
        Panel(
            "Cost against expectation",
            "GFLOPs spent over GFLOPs expected, an hour's mean. Above 1 images are harder than those calibrated on; "
            "deadlines that cut short pull it down.",
            ((f"{increase(SPENT, over='1h')} / {increase(EXPECTED, over='1h')}", "spent / expected"),),
            limits=(1.1, 1.25),
        ),
        Panel(
            "Median confidence by exit",
            "Of the answers given there.",
            ((quantile("0.5", "msmlp_confidence_bucket{$here}", "exit"), "exit {{exit}}"),),
            SHARE,
            top=1,
        ),
    ),
)
