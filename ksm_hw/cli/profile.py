"""`ksm-hw profile`."""

from pathlib import Path
from typing import Annotated

import typer

from ksm_hw.cli.app import (
    ArtifactPath,
    Board,
    Json,
    Key,
    Threads,
    Tracker,
    app,
    console,
    examples,
    messages,
    print_json,
)
from ksm_hw.errors import UserError


@app.command(
    epilog=examples(
        "ksm-hw profile artifact",
        "ksm-hw profile artifact --task cars --threads 1 --top 10",
        "ksm-hw profile artifact --tracker 127.0.0.1:9190 --key rpi4",
        "ksm-hw profile artifact --operator 'conv2d 3×3 s2 + add + clip' --loops 1",
    )
)
def profile(
    artifact: ArtifactPath,
    task: Annotated[str | None, typer.Option(help=r"Name of a task. \[default: the artifact's first]")] = None,
    runs: Annotated[int, typer.Option(min=5, max=1_000_000, help="Inferences in which operators are measured.")] = 50,
    threads: Threads = None,
    top: Annotated[int, typer.Option(min=1, max=1_000_000, help="Operators to print; JSON has all.")] = 20,
    operator: Annotated[
        str | None, typer.Option(help="Measure nothing, but show this operator's schedule and innermost loops.")
    ] = None,
    loops: Annotated[int, typer.Option(min=1, max=1_000_000, help="Loops of an operator to print; JSON has all.")] = 3,
    measure_peak: Annotated[bool, typer.Option("--measure-peak", help="Measure the machine's peak again.")] = False,
    tracker: Tracker = None,
    key: Key = None,
    host: Board = None,
    as_json: Json = False,
) -> None:
    """Show where an inference's time goes: each operator's time, GFLOP/s, bytes, and share of the machine's peak.

    The peak is measured once, for CPUs: multiply-adds in registers, and a triad through main memory. Its share is the
    time in which the machine could do the operator's work at best, by the time that it took. It is left out for boards
    and GPUs.

    With --operator nothing runs: a symbol of the library, or a name that this table has, gives what the compiler chose
    for it, and the machine code of its innermost loops, of whichever CPU.
    """
    if operator is not None:
        if (tracker, key, host) != (None, None, None):
            raise UserError("With --operator nothing runs, so no board is asked. Leave the board out, or --operator.")
        _look_inside(artifact, operator, loops, as_json)
        return
    from ksm_hw.runtime.tvm_import import hide_torch

    hide_torch()
    from ksm_hw.boards.address import board_address
    from ksm_hw.report.profile import profile_artifact, profile_as_json

    board = board_address(tracker, key, host)
    with messages.status("profile") as status:
        measured = profile_artifact(
            artifact, task, runs, threads, board, measure_peak, on_step=lambda step: status.update(step)
        )
    if as_json:
        print_json(profile_as_json(measured))
        return
    from ksm_hw.report.profile_terminal import print_profile

    print_profile(console, measured, top)


def _look_inside(artifact: Path, operator: str, loops: int, as_json: bool) -> None:
    from ksm_hw.report.operator_code import operator_code, operator_code_as_json

    code = operator_code(artifact, operator)
    if as_json:
        print_json(operator_code_as_json(code))
        return
    from ksm_hw.report.operator_code_terminal import print_operator_code

    print_operator_code(console, code, loops)
