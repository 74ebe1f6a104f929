"""PromQL that several panels share."""

HERE = 'job=~"$job", instance=~"$instance"'
"""What `$here` stands for: the services chosen on the dashboard."""

INFERENCE = f'{HERE}, route=~".*(classify|[iI]nfer)"'
"""What `$inference` stands for: their requests to classify, over HTTP and gRPC."""


def rate(counter: str, *by: str) -> str:
    """A second, by labels."""
    return f"{_sum(by)}(rate({counter}[$__rate_interval]))"


def increase(counter: str, *by: str, over: str = "$__range") -> str:
    """Over the time shown, by labels."""
    return f"{_sum(by)}(increase({counter}[{over}]))"


def share(part: str) -> str:
    """Each series of `part` in the sum of all."""
    return f"{part} / on () group_left () sum({part})"


def quantile(share: str, buckets: str, *by: str) -> str:
    """Of a histogram, lately, by labels."""
    return f"histogram_quantile({share}, {rate(buckets, *by, 'le')})"


def quantile_over_range(share: str, buckets: str, *by: str) -> str:
    """Of a histogram, over the time shown, by labels."""
    return f"histogram_quantile({share}, {increase(buckets, *by, 'le')})"


def written(expr: str) -> str:
    """As Grafana sends it, but for its own variables."""
    return expr.replace("$here", HERE).replace("$inference", INFERENCE)


def _sum(by: tuple[str, ...]) -> str:
    return f"sum by ({', '.join(by)}) " if by else "sum"
