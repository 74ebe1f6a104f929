"""How long answers take, how much there is to do, and what gives way."""

from scripts.dashboard.panels import IMAGES, PER_SECOND, SECONDS, SHARE, Panel, Query, Row
from scripts.dashboard.promql import quantile, rate

REQUESTS = "msmlp_request_seconds_bucket{$inference}"
LATENCIES: tuple[Query, ...] = tuple((quantile(q, REQUESTS), f"p{q[2:]}") for q in ("0.50", "0.95", "0.99"))

LATENCY = Row(
    "How long do answers take?",
    (
        Panel("Requests", "Arrival to answer, of requests to classify.", LATENCIES, SECONDS, limits=(0.5, 1)),
        Panel(
            "Images by exit, p95",
            "Arrival to answer, of the images that left at each exit.",
            ((quantile("0.95", "msmlp_image_seconds_bucket{$here}", "exit"), "exit {{exit}}"),),
            SECONDS,
        ),
        Panel(
            "Wait for a stage, p95",
            "How long an image stood in a stage's queue.",
            ((quantile("0.95", "msmlp_stage_queue_seconds_bucket{$here}", "stage"), "stage {{stage}}"),),
            SECONDS,
        ),
    ),
)

BACKLOG = Row(
    "Is there too much to do?",
    (
        Panel(
            "Backlog",
            "Predicted device time until all in flight are answered: the fullest instance. Images are shed at "
            "--max-wait-ms (2 s).",
            (("max(msmlp_backlog_seconds{$here})", "backlog"),),
            SECONDS,
            width=6,
            limits=(0.5, 1.5),
        ),
        Panel(
            "Images in flight",
            "Admitted and not yet answered, and the places there are.",
            (("sum(msmlp_inflight_images{$here})", "in flight"), ("sum(msmlp_capacity_images{$here})", "capacity")),
            width=6,
        ),
        Panel(
            "Queue by stage",
            "Images that wait for a stage.",
            (("sum by (stage) (msmlp_queue_images{$here})", "stage {{stage}}"),),
            width=6,
            stacked=True,
        ),
        Panel(
            "Longest wait by stage",
            "Of the images that wait now.",
            (("max by (stage) (msmlp_oldest_wait_seconds{$here})", "stage {{stage}}"),),
            SECONDS,
            width=6,
        ),
        Panel(
            "Device in use",
            "The share of what a device does at most, in full batches, that it is doing. It may be busy all the time "
            "and have much to spare, as its batches can still grow.",
            ((f"{rate('msmlp_work_seconds_total{$here}', 'instance')}", "{{instance}}"),),
            SHARE,
            width=6,
            limits=(0.7, 0.9),
        ),
        Panel(
            "Images a batch, by stage",
            "Padding not counted. Batches grow with the load by themselves.",
            (
                (
                    f"{rate('msmlp_stage_batch_size_sum{$here}', 'stage')}"
                    f" / {rate('msmlp_stage_batch_size_count{$here}', 'stage')}",
                    "stage {{stage}}",
                ),
            ),
            width=6,
        ),
        Panel(
            "Images answered",
            "By instance.",
            ((rate("msmlp_images_total{$here}", "instance"), "{{instance}}"),),
            IMAGES,
            width=6,
            stacked=True,
        ),
        Panel(
            "Requests by route",
            "Everything that was asked, probes and scrapes too.",
            ((rate("msmlp_requests_total{$here}", "route"), "{{route}}"),),
            PER_SECOND,
            width=6,
            stacked=True,
        ),
    ),
)

GIVING_WAY = Row(
    "What gives way?",
    (
        Panel(
            "Brown-out",
            "0: every request gets the operating point it asked for. 8: the cheapest that it allows.",
            (("max(msmlp_brownout_level{$here})", "level"),),
            width=6,
            limits=(1, 5),
            top=8,
        ),
        Panel(
            "Thresholds in effect",
            "Of the default policy, brown-out included: an image leaves where its score reaches them.",
            (("min by (exit) (msmlp_effective_threshold{$here})", "exit {{exit}}"),),
            SHARE,
            width=6,
            top=1,
        ),
        Panel(
            "Shed",
            "Turned away with 429. capacity: no place; wait: the answer would come too late; memory: too many bytes of "
            "bodies (requests, not images).",
            ((rate("msmlp_shed_total{$here}", "reason"), "{{reason}}"),),
            IMAGES,
            width=6,
            stacked=True,
        ),
        Panel(
            "Deadlines",
            "Images with deadline_ms. cut_short: answered in time with an earlier exit.",
            ((rate("msmlp_deadline_total{$here}", "outcome"), "{{outcome}}"),),
            IMAGES,
            width=6,
            stacked=True,
        ),
    ),
)
