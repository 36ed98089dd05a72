"""Measures ksm-hw beside other inference engines, and writes tables, JSON and plots.

One command: it makes a virtual environment for each peer (build/peers/environments), the networks and each engine's
file of them (build/peers/models), once, then measures. Every engine runs in a process of its own, and all take turns
in rounds. A turn in which the machine was not quiet is measured again, and of each engine's turns the quieter half
counts. An engine that fails is in the table with the reason. Ctrl-C keeps what was measured.
"""

import argparse
import datetime
import itertools
import json
import os
import shlex
import signal
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# Before NumPy: its thread pool would keep the second core busy beside the engines.
os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"

from peers.catalogue import ENGINES_OF, FURTHER_NETWORKS, IMAGE_SIZE, NETWORKS, TITLES, Engine, Precision
from peers.failures import EngineError
from peers.latency import Plan, measure_network, prepare_all
from peers.multitask import TaskPlan, measure_tasks
from peers.multitask_results import TaskCost
from peers.noise import Watch
from peers.places import RESULTS
from peers.preparation import prepare_network
from peers.results import Result
from peers.stored import read_results
from peers.tables import machine_class, markdown, page
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ksm_hw.files.written import written_file
from ksm_hw.runtime.machine import available_cores, cpu_features, this_machine

EXAMPLES = """examples:
  .venv/bin/python benchmarks/peers.py
  .venv/bin/python benchmarks/peers.py --models mobilenet_v2 --engines ksm-hw openvino --threads 2 --rounds 3
  .venv/bin/python benchmarks/peers.py --tune 600 -o docs/peers
  .venv/bin/python benchmarks/peers.py --precision int8 --models mobilenet_v2 -o docs/peers
  .venv/bin/python benchmarks/peers.py --multitask --models mobilenet_v2 --tasks 1 2 5 10 20
"""


@dataclass
class Record:
    """All that was measured so far, written after every round.

    Attributes:
        folder: where the files are.
        facts: of the machine and the command.
        results, costs: of the networks that are done; `current` of that which is being measured.
        unprepared: of engines that could not be prepared, where nothing else is done.
    """

    folder: Path
    facts: dict[str, Any]
    results: list[Result] = field(default_factory=list)
    costs: list[TaskCost] = field(default_factory=list)
    current: list[Result] = field(default_factory=list)
    unprepared: list[Result] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Of the JSON and the plot, without their endings: latencies are kept by the machine's class."""
        kind = machine_class(self.facts["cpu_flags"]).lower().replace("-", "")
        return "multitask" if self.facts["multitask"] else f"{self.page_name}-{kind}"

    @property
    def page_name(self) -> str:
        """Of the Markdown, without its ending: one for all machines in a precision."""
        if self.facts["multitask"]:
            return "multitask"
        return "peers" if self.facts["precision"] == "float32" else f"peers_{self.facts['precision']}"

    def content(self) -> dict[str, Any]:
        """As dictionaries, lists, numbers and texts alone."""
        results = [one.summary() for one in self.all_results()]
        return {"facts": self.facts, "results": results, "tasks": [asdict(cost) for cost in self.costs]}

    def all_results(self) -> list[Result]:
        """Of the networks that are done and of the current one."""
        return [*self.results, *self.current]

    def page(self) -> str:
        """The Markdown page: this machine, and behind it those of other classes whose results are in the folder."""
        machines = [markdown(self.all_results(), self.costs, self.facts)]
        if not self.facts["multitask"]:
            others = sorted(file for file in self.folder.glob(f"{self.page_name}-*.json") if file.stem != self.name)
            machines += [markdown(results, [], facts) for results, facts in map(read_results, others)]
        return page(machines, self.facts["precision"])

    def write(self) -> None:
        """Writes JSON and Markdown."""
        with written_file(self.folder / f"{self.name}.json") as temporary:
            temporary.write_text(json.dumps(self.content(), indent=1) + "\n")
        with written_file(self.folder / f"{self.page_name}.md") as temporary:
            temporary.write_text(self.page())

    def round_done(self, current: Sequence[Result]) -> None:
        """Takes what there is of the current network."""
        self.current = list(current)
        self.write()

    def keep_others(self, measured: Collection[tuple[str, int]]) -> None:
        """Takes over what the folder has of this machine's class, but of the networks and threads to be measured."""
        if (file := self.folder / f"{self.name}.json").exists():
            earlier, facts = read_results(file)
            self.results = [one for one in earlier if (one.network, one.threads) not in measured]
            self.facts["command"] = f"{facts['command']}; {self.facts['command']}"

    def network_done(self) -> None:
        """The current network's results are final."""
        self.results, self.current = self.all_results(), []


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    names = list(dict.fromkeys(engine.name for engines in ENGINES_OF.values() for engine in engines))
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    models = f"of {', '.join(NETWORKS)}, which are the default, and {', '.join(FURTHER_NETWORKS)}"
    parser.add_argument("--models", nargs="+", choices=[*TITLES], metavar="NAME", help=models)
    parser.add_argument("--engines", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--precision", choices=[*ENGINES_OF], default="float32", help="default: float32")
    parser.add_argument("--threads", nargs="+", type=positive, default=None, help="default: 1 2; --multitask: 2")
    parser.add_argument("--rounds", type=positive, default=7, help="turns of each engine; default: 7")
    parser.add_argument(
        "--repeats", type=int, default=3, help="of a noisy turn, at most; default: 3; 0 on a busy machine"
    )
    parser.add_argument(
        "--tune",
        type=positive,
        default=0,
        metavar="TRIALS",
        help="tune ksm-hw so long before, and measure that too",
    )
    made = parser.add_mutually_exclusive_group()
    made.add_argument("--prepare", action="store_true", help="make and compile what is measured, and measure nothing")
    made.add_argument("--prepared", action="store_true", help="measure what --prepare made, ksm-hw as it was then")
    parser.add_argument("--multitask", action="store_true", help="measure memory and switches of many tasks instead")
    parser.add_argument(
        "--tasks", nargs="+", type=positive, default=[1, 2, 5, 10, 20], help="numbers of tasks for that"
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="beside them keep what the output folder has of other networks",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, help="folder; default: build/peers/results")
    return parser.parse_args()


def positive(text: str) -> int:
    """A number of 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is too few: give 1 or more")
    return number


def chosen_engines(names: Sequence[str] | None, trials: int, precision: Precision = "float32") -> tuple[Engine, ...]:
    """The engines to measure; ksm-hw tuned is one of them where it shall be tuned."""
    chosen = [engine for engine in ENGINES_OF[precision] if names is None or engine.name in names]
    if not chosen:
        sys.exit(f"error: none of {', '.join(names or ())} is compared in {precision}.")
    tuned = [engine for engine in chosen if engine.variant == "tuned"]
    if not trials and names is not None and tuned:
        sys.exit("error: ksm-hw-tuned needs --tune TRIALS.")
    if trials and not tuned:
        sys.exit("error: --tune is for ksm-hw-tuned, which is compared in float32, and is not among these engines.")
    return tuple(engine for engine in chosen if engine.variant != "tuned" or trials)


def measure_latencies(arguments: argparse.Namespace, record: Record, progress: Progress) -> None:
    """Measures every network with every number of threads."""
    engines = chosen_engines(arguments.engines, arguments.tune, arguments.precision)
    models, threads = arguments.models or [*NETWORKS], arguments.threads or [1, 2]
    watch = Watch()
    bar = progress.add_task("", total=len(models) * len(threads))
    for model in models:
        for count in threads:

            def on_step(step: str, what: str = f"{TITLES[model]}, threads: {count}") -> None:
                progress.update(bar, description=f"{what}: {step}")

            on_step("make the network")
            try:
                folder = prepare_network(model)
            except EngineError as error:
                failed = [Result(model, count, one.name, one.title, one.ours, failure=str(error)) for one in engines]
                record.round_done(failed)
            else:
                numbers = arguments.rounds, arguments.repeats, arguments.tune
                plan = Plan(model, folder, count, engines, *numbers, arguments.precision, arguments.prepared)
                if arguments.prepare:
                    record.unprepared += prepare_all(plan, on_step)
                    continue
                measure_network(plan, watch, on_step, record.round_done)
            record.network_done()
            progress.advance(bar)


def measure_many_tasks(arguments: argparse.Namespace, record: Record, progress: Progress) -> None:
    """Measures several tasks of every network."""
    engines = chosen_engines(arguments.engines, arguments.tune)
    models, threads = arguments.models or ["mobilenet_v2"], arguments.threads or [2]
    watch = Watch()
    bar = progress.add_task("", total=len(models) * len(threads))

    def on_cost(cost: TaskCost) -> None:
        record.costs.append(cost)
        record.write()

    for model in models:
        for count in threads:

            def on_step(step: str, what: str = TITLES[model]) -> None:
                progress.update(bar, description=f"{what}: {step}")

            tasks = tuple(sorted(set(arguments.tasks)))
            plan = TaskPlan(model, count, engines, tasks, arguments.repeats, arguments.tune)
            measure_tasks(plan, watch, on_step, on_cost)
            progress.advance(bar)


def draw(record: Record) -> None:
    """Draws the plots."""
    from peers.plots import plot_latency, plot_tasks  # Here: matplotlib takes seconds to import.

    plot_latency(record.all_results(), record.folder / f"{record.name}.png")
    plot_tasks(record.costs, record.folder / "multitask.png")


def facts_of_run(arguments: argparse.Namespace) -> dict[str, Any]:
    """The machine, the date and the command."""
    return {
        "command": shlex.join([".venv/bin/python", "benchmarks/peers.py", *sys.argv[1:]]),
        "multitask": arguments.multitask,
        "precision": arguments.precision,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "image_size": IMAGE_SIZE,
        "machine": asdict(this_machine()),
        "cpu_flags": sorted(cpu_features() or ()),
    }


def main() -> int:
    """Measures, prints and writes."""
    arguments, messages = parse_arguments(), Console(stderr=True)
    # Ended from outside it keeps what was measured, as it does after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if arguments.multitask and arguments.precision != "float32":
        sys.exit("error: many tasks are compared in float32. Leave --precision out, or --multitask.")
    if too_many := [count for count in arguments.threads or [] if count > available_cores()]:
        sys.exit(f"error: {too_many[0]} threads on {available_cores()} cores would only get in each other's way.")
    record = Record(arguments.output, facts_of_run(arguments))
    if arguments.keep:
        measured = itertools.product(arguments.models or [*NETWORKS], arguments.threads or [1, 2])
        record.keep_others({*measured})
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    status = 0
    # Redrawn seldom: what draws is a process beside those that are measured.
    with Progress(*columns, console=messages, refresh_per_second=2) as progress:
        try:
            (measure_many_tasks if arguments.multitask else measure_latencies)(arguments, record, progress)
        except EngineError as error:
            messages.print(f"error: {error}", markup=False)
            status = 2
        except KeyboardInterrupt:
            messages.print("Stopped; what was measured is kept.")
            status = 130
    if arguments.prepare:
        for one in record.unprepared:
            messages.print(f"{one.title}, {TITLES[one.network]}: {one.failure}", markup=False)
        return status
    record.write()
    draw(record)
    if arguments.json:
        print(json.dumps(record.content(), indent=1))
    elif sys.stdout.isatty():
        Console().print(Markdown(record.page()))
    else:
        print(record.page())
    messages.print(f"Written to {arguments.output}", markup=False)
    return status


if __name__ == "__main__":
    sys.exit(main())
