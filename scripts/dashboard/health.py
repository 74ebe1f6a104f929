"""At a glance; errors; the process."""

from scripts.dashboard.exits import SAVED, SPENT
from scripts.dashboard.load import REQUESTS
from scripts.dashboard.panels import BYTES, IMAGES, PER_SECOND, SECONDS, SHARE, Panel, Row, Stat, Table
from scripts.dashboard.promql import increase, quantile, rate

FAILED = rate('msmlp_requests_total{$inference, status=~"500|503"}')
ASKED = rate("msmlp_requests_total{$inference}")
SHED = rate("msmlp_shed_total{$here}")
ANSWERED = rate("msmlp_images_total{$here}")

NOW = Row(
    "Now",
    (
        Stat(
            "Engines up",
            "Instances that take images.",
            (("sum(msmlp_engine_up{$here})", "up"),),
            limits=(1,),
            low_is_bad=True,
        ),
        Stat(
            "Alerts",
            "Firing, of docker/prometheus/alerts.yml.",
            (('count(ALERTS{alertname=~"Msmlp.*", alertstate="firing"}) or vector(0)', "firing"),),
            limits=(1, 3),
        ),
        Stat("Images", "Answered.", ((ANSWERED, "images"),), IMAGES),
        Stat(
            "Cost against the full model",
            "GFLOPs spent, of those that every stage for every image would have cost.",
            ((f"{rate(SPENT)} / ({rate(SPENT)} + {rate(SAVED)})", "cost"),),
            SHARE,
        ),
        Stat(
            "p99 latency", "Of requests to classify.", ((quantile("0.99", REQUESTS), "p99"),), SECONDS, limits=(0.5, 1)
        ),
        Stat(
            "Failed",
            "Requests to classify that got 500 or 503.",
            ((f"({FAILED} or vector(0)) / {ASKED}", "failed"),),
            SHARE,
            limits=(0.002, 0.02),
        ),
        Stat(
            "Shed", "Images turned away.", ((f"{SHED} / ({SHED} + {ANSWERED})", "shed"),), SHARE, limits=(0.001, 0.01)
        ),
        Stat("Brown-out", "Level, 0 to 8.", (("max(msmlp_brownout_level{$here})", "level"),), limits=(1, 5)),
    ),
)

ERRORS = Row(
    "What goes wrong?",
    (
        Panel(
            "Answers that are no 2xx",
            "4xx: the caller's mistakes, and 429 shed. 500: a fault of the service. 503: starting, draining or engine "
            "down. 504: every image expired. 499: the caller left.",
            ((rate('msmlp_requests_total{$here, status!~"2.."}', "status"), "{{status}}"),),
            PER_SECOND,
            stacked=True,
        ),
        Panel(
            "Images nobody waited for",
            "The caller left while they were decoded, in a queue, or in a batch.",
            ((rate("msmlp_cancelled_total{$here}", "where"), "{{where}}"),),
            IMAGES,
            stacked=True,
        ),
        Panel(
            "Engine restarts",
            "The engine's process died and was started anew (--engine process).",
            ((increase("msmlp_engine_restarts_total{$here}", "instance", over="$__rate_interval"), "{{instance}}"),),
            limits=(1,),
        ),
    ),
)

PROCESS = Row(
    "What does it run on?",
    (
        Table(
            "Models served",
            "One row an instance; two versions side by side: a roll-out under way.",
            ("instance", "name", "version", "backend", "device"),
            (),
        ),
        Panel(
            "CPU",
            "Cores that the server's process keeps busy; the engine's own process (--engine process) is not in it.",
            ((rate("process_cpu_seconds_total{$here}", "instance"), "{{instance}}"),),
        ),
        Panel(
            "Memory",
            "Resident, of the server's process.",
            (("sum by (instance) (process_resident_memory_bytes{$here})", "{{instance}}"),),
            BYTES,
        ),
        Panel(
            "Open files",
            "Connections too, of those that the process may have.",
            (("max by (instance) (process_open_fds{$here} / process_max_fds{$here})", "{{instance}}"),),
            SHARE,
            limits=(0.7, 0.9),
        ),
    ),
)
