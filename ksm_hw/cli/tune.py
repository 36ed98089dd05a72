"""`ksm-hw tune`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ksm_hw.artifact.modes import IntermediateRepresentation, Precision
from ksm_hw.cli.app import (
    Batch,
    Board,
    BundlePath,
    CudaArch,
    HostTarget,
    Json,
    Key,
    TargetFile,
    TargetName,
    Tracker,
    app,
    collect_garbage_less_often,
    command,
    console,
    examples,
    messages,
    print_json,
    stopped_by_ctrl_c,
)
from ksm_hw.compiler.tuning.progress import TuneResult, TunerName
from ksm_hw.errors import UserError


@app.command(
    epilog=examples(
        "ksm-hw tune --target host --trials 500 -o tuned/host",
        "ksm-hw tune --target rpi4 --tracker 127.0.0.1:9190 --key rpi4 --trials 2000 -o tuned/rpi4",
        "ksm-hw compile --target rpi4 --task all --tuned tuned/rpi4",
        "ksm-hw tune --target rpi5 --precision int8 --tracker 127.0.0.1:9190 --key rpi5 -o tuned/rpi5",
        "ksm-hw tune --ir relay --tuner metaschedule --target host -o tuned/host-relay",
    )
)
def tune(
    target: TargetName,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the records; goes on if it has some.")],
    bundle: BundlePath = None,
    task: Annotated[str, typer.Option(help="Name of a task whose operators are tuned, or all.")] = "all",
    trials: Annotated[int, typer.Option(min=1, max=10_000_000, help="Measurements in all.")] = 1000,
    precision: Annotated[Precision, typer.Option(help="What inferences compute in; compile in the same.")] = "float32",
    batch: Batch = 1,
    tracker: Tracker = None,
    key: Key = None,
    host: Board = None,
    ir: Annotated[IntermediateRepresentation, typer.Option(help="The compiler whose operators are tuned.")] = "relax",
    tuner: Annotated[
        TunerName | None,
        typer.Option(help=r"The search, for --ir relay; relax has one of its own. \[default: autotvm]"),
    ] = None,
    target_file: TargetFile = None,
    host_cpu: HostTarget = None,
    arch: CudaArch = None,
    as_json: Json = False,
) -> None:
    """Measure schedules of the backbone's operators where they will run. Serves every task; Ctrl-C keeps all so far."""
    from ksm_hw.boards.address import board_address
    from ksm_hw.compiler.tuning.records_folder import check_records_folder
    from ksm_hw.masks.bundle import load_bundle, select_tasks
    from ksm_hw.resources import shipped_bundle
    from ksm_hw.toolchains.targets import check_runs_here, load_target

    if tuner is not None and ir != "relay":
        raise UserError("--tuner names a search of TVM 0.19, for --ir relay. Give that too, or leave --tuner out.")
    if ir == "relay" and precision != "float32":
        raise UserError(f"Relay tunes in float32, and {precision} was asked for. Use --ir relax.")
    check_records_folder(output)
    compile_target = load_target(target, file=target_file, arch=arch, host=host_cpu)
    if ir == "relay":
        from ksm_hw.compiler.relay.tune import check_target, tune_through_relay

        check_target(compile_target)
    address = board_address(tracker, key, host)
    if address is None:
        check_runs_here(compile_target)
    loaded = select_tasks(load_bundle(bundle or shipped_bundle()), task)
    with messages.status("import the compiler"):
        if ir == "relay":
            tune_bundle: Callable[..., TuneResult] = partial(tune_through_relay, tuner=tuner or "autotvm")
        else:
            collect_garbage_less_often()
            from ksm_hw.compiler.tuning.tune import tune as tune_through_relax

            tune_bundle = partial(tune_through_relax, precision=precision)
    kept = f"What was measured is in {output!s}: give the same command to go on."
    with stopped_by_ctrl_c(kept), _trial_progress() as on_progress:
        result = tune_bundle(
            loaded,
            compile_target,
            output,
            trials=trials,
            batch=batch,
            board=address,
            on_progress=on_progress,
        )
    if as_json:
        print_json(asdict(result))
    else:
        given: dict[str, object] = {
            "--bundle": bundle,
            "--target-file": target_file,
            "--arch": arch,
            "--host-cpu": host_cpu,
            "--precision": None if precision == "float32" else precision,
            "--batch": None if batch == 1 else batch,
            "--ir": None if ir == "relax" else ir,
            "--tuned": output,
        }
        words = [word for option, value in given.items() if value is not None for word in (option, value)]
        _print_tuned(result, output, command("compile", "--target", target, "--task", task, *words))


def _print_tuned(result: TuneResult, output: Path, next_command: str) -> None:
    """What a tune found, for a person."""
    console.print(f"{result.operators} operators, {result.trials} trials ({result.failed} failed) in {output}")
    if result.latency is not None and result.default_latency is not None:
        console.print(
            f"All calls of them: {result.latency * 1e3:.2f} ms, {result.default_latency * 1e3:.2f} ms with default "
            "schedules",
        )
    console.print(f"Use it: {next_command}", soft_wrap=True)


@contextmanager
def _trial_progress() -> Iterator[Any]:
    """A progress bar of the trials, with the best latency so far, the failures, and the time left."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("trials"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=messages, transient=True) as progress:
        bar = progress.add_task("lower the network", total=None)

        def on_progress(state: Any) -> None:
            minutes, seconds = divmod(int(state.seconds_left), 60)
            words = [f"{minutes}:{seconds:02d} left"]
            if state.latency is not None:
                words.append(f"best {state.latency * 1e3:.2f} ms")
            if state.failed:
                words.append(f"{state.failed} failed: {state.error[:80]}")
            if state.again:
                words.append(f"{state.again} measured again")
            if state.boards > 1:
                words.append(f"{state.boards} boards")
            progress.update(bar, completed=state.done, total=state.total, description=", ".join(words))

        yield on_progress
