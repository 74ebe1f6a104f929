"""The command line of `msmlp plan`. Heavy imports happen inside the command."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from msmlp.model.errors import OptionError


def plan(
    rate: Annotated[
        float | None, typer.Option(min=0.01, help="Requests per second: steady, or at the day's peak.")
    ] = None,
    p99_ms: Annotated[float, typer.Option("--p99-ms", min=0.1, help="The 99th percentile that is promised.")] = 100,
    accuracy: Annotated[float, typer.Option(min=0, max=1, help="The least accuracy, over all images.")] = 0,
    refused: Annotated[float, typer.Option(min=0, max=1, help="The largest share of requests that get 429.")] = 0.001,
    traffic: Annotated[
        str, typer.Option(help="poisson, daily, bursts, or an access log of msmlp serve in JSON.")
    ] = "poisson",
    images: Annotated[int, typer.Option(min=1, max=1024, help="Images per request.")] = 1,
    seconds: Annotated[float, typer.Option(min=1, max=86400, help="How long the simulated traffic lasts.")] = 60,
    price: Annotated[float | None, typer.Option(min=0, help="Of one replica for an hour, in any currency.")] = None,
    fail: Annotated[
        float, typer.Option(min=0, max=1, help="The share of replicas that dies in the middle; 0: none.")
    ] = 0.33,
    routing: Annotated[
        Literal["random", "two-choices", "least-wait"], typer.Option(help="Which replica gets a request.")
    ] = "two-choices",
    most: Annotated[int, typer.Option("--max-replicas", min=1, max=1000, help="No more are tried.")] = 100,
    policy: Annotated[str, typer.Option(help="The operating point of all requests.")] = "balanced",
    weights: Annotated[Path | None, typer.Option(help="A weights folder.", show_default="the shipped one")] = None,
    costs: Annotated[
        Path | None, typer.Option(help="Costs measured before.", show_default="measures this machine")
    ] = None,
    save_costs: Annotated[Path | None, typer.Option(help="Keep what was measured, for --costs.")] = None,
    seed: Annotated[int, typer.Option(help="Of all random draws.")] = 0,
    page: Annotated[Path | None, typer.Option(help="Write a page with plots, in HTML.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Simulate how many replicas a traffic needs, what they cost, and what happens when some die.

    A replica is a core of a CPU with `msmlp serve --frontends 1`, or a GPU with its front ends. Scheduler, admission
    and brown-out are those of the service; times come from this machine or from --costs.

    \b
    Examples:
      msmlp plan --rate 5000 --p99-ms 50 --price 0.04
      msmlp plan --rate 2000 --traffic daily --accuracy 0.86 --page plan.html
      msmlp plan --traffic access.log --costs gpu.json --json
    """
    from msmlp.model.weights import load_calibration, load_weights
    from msmlp.plan.costs import measure_costs, read_costs
    from msmlp.plan.page import plan_lines, write_page
    from msmlp.plan.question import Goal, Simulation, answer
    from msmlp.plan.replica import Limits
    from msmlp.plan.traffic import traffic_of
    from msmlp.service.operating_points import OperatingPoints
    from msmlp.service.settings import load_settings

    settings = load_settings(weights=weights, policy=policy, frontends=1)
    loaded = load_weights(settings.weights)
    calibration = load_calibration(loaded)
    points = OperatingPoints(calibration, loaded.manifest.gflops_cumulative, settings.policy)
    make, lasts = traffic_of(traffic, rate, seconds, images)
    if costs is not None and save_costs is not None:
        raise OptionError("--save-costs", "goes without --costs: it keeps what was measured now")
    known = read_costs(costs, loaded) if costs else measure_costs(settings, loaded, calibration, _say)
    if save_costs is not None:
        save_costs.write_text(known.model_dump_json(indent=1) + "\n")
    limits = Limits(settings.max_wait_ms / 1e3, settings.brownout_ms / 1e3)
    simulation = Simulation(known, calibration, points, make, lasts, limits, routing=routing, seed=seed)
    document = answer(simulation, Goal(p99_ms, accuracy, refused), most=most, price=price, fail=fail, say=_say)
    if page is not None:
        write_page(document, page)
    typer.echo(json.dumps(document, indent=1) if as_json else "\n".join(plan_lines(document)))


def _say(line: str) -> None:
    sys.stderr.write(f"plan: {line}\n")
