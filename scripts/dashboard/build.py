"""Panels and rows, as Grafana's library writes them."""

import json
import string
from itertools import count
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    DataSourceRef,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataTransformerConfig,
    DynamicConfigValue,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from scripts.dashboard.exits import COST_OF_EXITS, SAVINGS, TRUST
from scripts.dashboard.health import ERRORS, NOW, PROCESS
from scripts.dashboard.load import BACKLOG, GIVING_WAY, LATENCY
from scripts.dashboard.panels import Panel, Row, Stat, Table
from scripts.dashboard.promql import written

ROWS: tuple[Row, ...] = (NOW, COST_OF_EXITS, SAVINGS, LATENCY, BACKLOG, GIVING_WAY, TRUST, ERRORS, PROCESS)
SOURCE = DataSourceRef("prometheus", "${datasource}")
GREEN, ORANGE, RED = "green", "orange", "red"
REFS = string.ascii_uppercase
HEIGHTS = {Stat: 4, Panel: 8, Table: 7}


def page() -> str:
    """The dashboard as a file."""
    built = dashboard.Dashboard("msmlp").uid("msmlp").tags(["msmlp"]).time("now-15m", "now").refresh("5s").readonly()
    built = built.description("What each exit of the cascade costs, and how the service around it does.")
    built = built.tooltip(DashboardCursorSync.CROSSHAIR).variables(_variables())
    ids = count(1)
    for row in ROWS:
        built = built.with_row(dashboard.Row(row.question).id(next(ids)))
        for panel in row.panels:
            built = built.with_panel(_panel(panel).id(next(ids)).height(HEIGHTS[type(panel)]).span(panel.width))
    return json.dumps(built.build(), cls=JSONEncoder, indent=2) + "\n"


def _variables() -> list[Any]:
    """Which Prometheus, and which services in it."""
    chosen = [_choice("job", "msmlp_engine_up"), _choice("instance", 'msmlp_engine_up{job=~"$job"}')]
    return [dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"), *chosen]


def _choice(label: str, series: str) -> dashboard.QueryVariable:
    every = VariableOption(selected=True, text=["All"], value=["$__all"])
    variable = dashboard.QueryVariable(label).label(label.capitalize()).datasource(SOURCE)
    variable = variable.query(f"label_values({series}, {label})").refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
    return variable.sort(VariableSort.NATURAL_ASC).multi(True).include_all(True).current(every)


def _panel(panel: Panel | Table) -> Any:
    if isinstance(panel, Table):
        return _table(panel)
    return _stat(panel) if isinstance(panel, Stat) else _lines(panel)


def _query(ref: str, expr: str, legend: str = "") -> prometheus.Dataquery:
    query = prometheus.Dataquery().datasource(SOURCE).expr(written(expr)).ref_id(ref)
    return query.range().legend_format(legend) if legend else query.instant().format(PromQueryFormat.TABLE)


def _common(builder: Any, panel: Panel) -> Any:
    builder = builder.title(panel.title).description(panel.about).datasource(SOURCE).unit(panel.unit).min(0)
    for ref, (expr, legend) in zip(REFS, panel.queries, strict=False):
        builder = builder.with_target(_query(ref, expr, legend))
    return builder if panel.top is None else builder.max(panel.top)


def _limits(colors: list[str], limits: tuple[float, ...]) -> dashboard.ThresholdsConfig:
    steps = [Threshold(value, color) for value, color in zip((None, *limits), colors, strict=False)]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


def _stat(panel: Stat) -> Any:
    colors = [RED, GREEN] if panel.low_is_bad else [GREEN, ORANGE, RED]
    builder = _common(stat.Panel(), panel).thresholds(_limits(colors, panel.limits))
    # Not the last that was a number: without traffic that may be long past.
    builder = builder.reduce_options(common.ReduceDataOptions().calcs(["last"])).no_value("-")
    return builder.color_mode(BigValueColorMode.VALUE).graph_mode(BigValueGraphMode.AREA)


def _lines(panel: Panel) -> Any:
    legend = common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)
    tooltip = common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING)
    builder = _common(timeseries.Panel(), panel).legend(legend.show_legend(True)).tooltip(tooltip)
    builder = builder.fill_opacity(30 if panel.stacked else 0)
    if panel.stacked:
        builder = builder.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    if panel.limits:
        style = common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED)
        builder = builder.thresholds(_limits([GREEN, ORANGE, RED], panel.limits)).thresholds_style(style)
    return builder


def _table(panel: Table) -> Any:
    """A query a column; Grafana joins them by the labels they have in common."""
    builder = table.Panel().title(panel.title).description(panel.about).datasource(SOURCE)
    if not panel.columns:
        builder = builder.with_target(_query("A", f"max by ({', '.join(panel.by)}) (msmlp_model_info{{$here}})"))
    names, hidden = {}, {"Time": True, "Value": not panel.columns}
    for ref, column in zip(REFS, panel.columns, strict=False):
        builder = builder.with_target(_query(ref, column.expr))
        builder = builder.override_by_name(column.title, [DynamicConfigValue("unit", column.unit)])
        names[f"Value #{ref}"] = column.title
    order = {name: place for place, name in enumerate([*panel.by, *names])}
    organize = {"excludeByName": hidden, "indexByName": order, "renameByName": names}
    return builder.with_transformation(DataTransformerConfig("merge", options={})).with_transformation(
        DataTransformerConfig("organize", options=organize)
    )
