"""The command line of `msmlp plan`. Heavy imports happen inside the command."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from msmlp.model.errors import OptionError


def plan(
    rate: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            help="Requests per second: for poisson the mean, for daily the peak, for bursts the rate between them. "
            "Not with an access log.",
        ),
    ] = None,
    p99_ms: Annotated[
        float, typer.Option("--p99-ms", min=0.1, help="Largest 99th percentile of the latency, in ms.")
    ] = 100,
    accuracy: Annotated[
        float, typer.Option(min=0, max=1, help="Smallest accuracy over all answered images; 0: any.")
    ] = 0,
    refused: Annotated[float, typer.Option(min=0, max=1, help="Largest share of requests that may get 429.")] = 0.001,
    traffic: Annotated[
        str, typer.Option(help="poisson, daily, bursts, or the path of a JSON access log of msmlp serve.")
    ] = "poisson",
    images: Annotated[int | None, typer.Option(min=1, max=1024, help="Images per request.", show_default="1")] = None,
    seconds: Annotated[
        float | None,
        typer.Option(min=1, max=86400, help="How long the simulated traffic lasts.", show_default="60"),
    ] = None,
    price: Annotated[
        float | None, typer.Option(min=0, max=1e9, help="Price of one replica per hour, in any currency.")
    ] = None,
    fail: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Share of the replicas that die halfway through and do not come back; 0: none."
        ),
    ] = 0.33,
    routing: Annotated[
        Literal["random", "two-choices", "least-wait"],
        typer.Option(
            help="How a replica is chosen for each request: at random; of two random ones, or of all, the one with the "
            "shortest predicted wait."
        ),
    ] = "two-choices",
    most: Annotated[
        int, typer.Option("--max-replicas", min=1, max=1000, help="Largest number of replicas to try.")
    ] = 100,
    policy: Annotated[str, typer.Option(help="Operating point of all requests, before brown-out.")] = "balanced",
    weights: Annotated[Path | None, typer.Option(help="A weights folder.", show_default="the shipped one")] = None,
    costs: Annotated[
        Path | None,
        typer.Option(help="File of costs saved with --save-costs.", show_default="measured on this machine"),
    ] = None,
    save_costs: Annotated[Path | None, typer.Option(help="Save the measured costs to this file, for --costs.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random numbers.")] = 0,
    page: Annotated[Path | None, typer.Option(help="Write an HTML page with plots to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")] = False,
) -> None:
    """Simulate how many replicas your traffic needs, what they cost, and what happens when some die.

    A replica is one core of a CPU, or one GPU with its front ends. The simulation runs the service's own scheduler,
    admission and brown-out. Stage and request times are measured on this machine, or read with --costs. Exit status 1
    if no number of replicas meets the goal.

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

    settings = load_settings(weights=weights, policy=policy)
    loaded = load_weights(settings.weights)
    calibration = load_calibration(loaded)
    points = OperatingPoints(calibration, loaded.manifest.gflops_cumulative, settings.policy)
    requests = traffic_of(traffic, rate, seconds, images)
    if costs is not None and save_costs is not None:
        raise OptionError("--save-costs", "cannot be combined with --costs; expected only one of the two")
    known = read_costs(costs, loaded) if costs else measure_costs(settings, loaded, calibration, _say)
    if save_costs is not None:
        save_costs.write_text(known.model_dump_json(indent=1) + "\n")
    limits = Limits(settings.max_wait_ms / 1e3, settings.brownout_ms / 1e3)
    simulation = Simulation(known, calibration, points, requests, limits, routing=routing, seed=seed)
    document = answer(simulation, Goal(p99_ms, accuracy, refused), most=most, price=price, fail=fail, say=_say)
    if page is not None:
        write_page(document, page)
    typer.echo(json.dumps(document, indent=1) if as_json else "\n".join(plan_lines(document)))


def _say(line: str) -> None:
    sys.stderr.write(f"plan: {line}\n")
