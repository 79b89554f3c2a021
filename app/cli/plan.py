"""`plan`: what goodput to expect, how often to save, and what the run had so far."""

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from app.cli.arguments import Commands, count_from, number_between
from app.cli.named_run import existing_run
from app.cli.tables import add_json, show_json
from app.console import counted, duration
from app.errors import ConfigError, NotFound
from app.observe.goodput import (
    Costs,
    Measured,
    candidates,
    daly,
    measured,
    preemptions,
    simulated,
    young,
)
from app.observe.reported_run import read_run
from app.printable import show
from app.settings.combined import Settings
from app.training.preemption import StopRequest

_DAY = 86_400.0
_BAR = 40  # characters of 100 %


def add_commands(commands: Commands) -> None:
    command = commands.add("plan", plan, "expected goodput, and the best CHECKPOINT_EVERY_STEPS")
    add_json(command)
    command.add_argument("--nodes", type=count_from(1), default=1, help="default: 1")
    flags = {
        "preemptions_per_node_day": "preemptions of one node in a day",
        "step_seconds": "a step",
        "save_seconds": "what a save holds training up for",
        "commit_seconds": "from a snapshot until it is in the store",
        "restart_seconds": "from a preemption, with the wait for a node, to the first step",
        "kept_share": "share of preemptions in which the last step is committed, by who is asked "
        "to stop or by a survivor, 0 to 1; where all nodes go at once nobody survives",
        "price_per_node_hour": "in any currency",
    }
    for name, text in flags.items():
        most = 1.0 if name == "kept_share" else 1e9
        low = 0.0 if name in ("kept_share", "save_seconds", "commit_seconds") else 1e-6
        default = "" if name == "price_per_node_hour" else "; default: as the run has measured"
        default += " or 0" if name in ("kept_share", "commit_seconds") else ""
        # Both ways of writing: as this program's other flags, and as most programs do.
        names = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
        command.add_argument(*names, type=number_between(low, most), help=text + default)


@dataclass(frozen=True)
class _Plan:
    """What is planned with. `mean` is the time between two preemptions of any node, in seconds."""

    nodes: int
    mean: float
    costs: Costs
    every: int


def plan(settings: Settings, arguments: argparse.Namespace, _: StopRequest) -> None:
    """Print what the run had, and what is to be expected.

    Raises ConfigError where neither a flag nor the run says a number.
    """
    target: int | None = settings.run.total_steps
    done, found, name, missing = 0, None, None, ""
    try:
        run = read_run(existing_run(settings))
    except NotFound as error:
        missing = f"no run to measure: {error}"
    else:
        found, name = measured(run), run.name
        target, done = run.target or target, found.reached
    if not arguments.json:
        show(_measured_line(name, found) if name and found else missing)
    planned = _planned(settings, arguments, found)
    expected = _expected(planned)
    rest = None
    if target is not None and target > done:
        seconds = (target - done) * planned.costs.step / max(expected.best_goodput, 1e-9)
        hours = planned.nodes * seconds / 3600
        price = arguments.price_per_node_hour
        rest = _Rest(done, target, seconds, hours, hours * price if price else None)
    if arguments.json:
        _show_as_json(name, found, planned, expected, rest)
        return
    _show_expected(planned, expected)
    if rest is not None:
        cost = f", {rest.price:,.2f} at {price:g} an hour" if rest.price else ""
        show(
            f"from step {done:,} to {target:,}, with the best interval: {duration(rest.seconds)}, "
            f"{rest.node_hours:,.1f} node-hours{cost}"
        )


def _show_as_json(
    name: str | None,
    found: Measured | None,
    planned: _Plan,
    expected: "_Expected",
    rest: "_Rest | None",
) -> None:
    measured_there = None if found is None else {**asdict(found), "goodput": found.goodput}
    show_json(
        {
            "run": name,
            "measured": measured_there,
            "nodes": planned.nodes,
            "seconds_between_preemptions": planned.mean,
            "costs": planned.costs,
            "checkpoint_every_steps": planned.every,
            "young": expected.young,
            "daly": expected.daly,
            "intervals": [
                {"every": every, "goodput": goodput} for every, goodput in expected.goodput.items()
            ],
            "best": expected.best,
            "rest": rest,
        }
    )


def _planned(settings: Settings, arguments: argparse.Namespace, found: Measured | None) -> _Plan:
    nodes, of_run = arguments.nodes, found or Measured(wall=0.0, steps=0, interruptions=0)

    def value(flag: str, here: float | None, otherwise: float | None = None) -> float:
        given = getattr(arguments, flag)
        for number in (given, here, otherwise):
            if number is not None:
                return float(number)
        raise ConfigError(f"--{flag} has to be given: the run has measured none yet")

    per_day = None
    if of_run.interruptions and of_run.wall > 0:
        per_day = of_run.interruptions / of_run.wall * _DAY
    costs = Costs(
        step=value("step_seconds", of_run.step),
        save=value("save_seconds", of_run.save),
        commit=value("commit_seconds", of_run.commit, 0.0),
        restart=value("restart_seconds", of_run.restart),
        kept=value("kept_share", of_run.kept, 0.0),
    )
    if arguments.kept_share is None and of_run.kept is None and not arguments.json:
        show(
            "no interruption was measured: what is not in the store is taken as lost in each; "
            "--kept-share says otherwise"
        )
    rate = value("preemptions_per_node_day", per_day) * nodes
    return _Plan(nodes, _DAY / rate, costs, settings.checkpoints.checkpoint_every_steps)


def _measured_line(name: str, found: Measured) -> str:
    goodput = "not known yet" if found.goodput is None else f"{100 * found.goodput:.1f} %"
    return (
        f"measured: run {name}, {found.steps:,} steps in {duration(found.wall)} with "
        f"{found.interruptions} interruptions: goodput {goodput}"
    )


@dataclass(frozen=True)
class _Expected:
    """`young` and `daly` are intervals in steps by formula, None where no step is ever lost.
    `goodput` is simulated, by interval, and `best` the interval that has the most of it."""

    young: int | None
    daly: int | None
    goodput: Mapping[int, float]
    best: int

    @property
    def best_goodput(self) -> float:
        return self.goodput[self.best]


@dataclass(frozen=True)
class _Rest:
    """What is left of a run. `price` in the currency that was asked with."""

    step: int
    target: int
    seconds: float
    node_hours: float
    price: float | None


def _expected(planned: _Plan) -> _Expected:
    costs, mean = planned.costs, planned.mean
    formulas: dict[str, int] = {}
    if costs.kept < 1:
        lossy = mean / (1 - costs.kept)
        for name, formula in (("young", young), ("daly", daly)):
            formulas[name] = max(1, round(formula(costs, lossy) / costs.step))
    longest = max(planned.every, round(mean / costs.step))
    intervals = preemptions(mean)
    tried = sorted({*candidates(longest), planned.every})
    goodput = {every: simulated(costs, every, intervals) for every in tried}
    best = max(tried, key=lambda every: (round(goodput[every], 4), every))
    return _Expected(formulas.get("young"), formulas.get("daly"), goodput, best)


def _show_expected(planned: _Plan, expected: _Expected) -> None:
    """Print the table of intervals."""
    costs, mean = planned.costs, planned.mean
    show(
        f"a step {costs.step:.3g} s; a save holds up {costs.save:.3g} s and is in the store after "
        f"{costs.commit:.3g} s; a restart {costs.restart:.3g} s"
    )
    show(
        f"{counted(planned.nodes, 'node')}, one preempted every {duration(mean)}; the last step is "
        f"kept in {100 * costs.kept:.0f} % of these"
    )
    if expected.young is not None and expected.daly is not None:
        show(f"CHECKPOINT_EVERY_STEPS by formula: Young {expected.young:,}, Daly {expected.daly:,}")
    else:
        show("no step is ever lost, so the longest interval is the best: it saves only at the end")
    show(f"{'every':>12} {'goodput':>8}   by simulation")
    for every, goodput in expected.goodput.items():
        notes = [
            *(["now"] if every == planned.every else []),
            *(["best"] if every == expected.best else []),
        ]
        bar = "█" * round(_BAR * goodput)
        show(f"{every:>6} steps {100 * goodput:>6.1f} % {bar} {', '.join(notes)}".rstrip())
