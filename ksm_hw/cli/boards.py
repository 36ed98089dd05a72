"""`ksm-hw board`: boards that are reached over the network."""

import functools
import logging
import socket
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from ksm_hw.cli.app import PACKAGES, STOPPED, CommandLine, Json, app, console, examples, messages, print_json, show_log
from ksm_hw.errors import UserError

board_app = CommandLine(
    help="Boards that are reached over the network, through TVM's own tracker and server.\n\n"
    "TVM's protocol lets whoever reaches a board run any code there. Use it in a network that you trust.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
app.add_typer(board_app, name="board")

Bind = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")]


@board_app.command(epilog=examples("ksm-hw board tracker", "ksm-hw board tracker --bind 0.0.0.0 --port 9190"))
def tracker(
    bind: Bind = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 9190,
) -> None:
    """Run the tracker, which hands boards to whoever asks for them. On the desk; until Ctrl-C."""
    from ksm_hw.runtime.tvm_import import import_tvm_runtime

    import_tvm_runtime()
    from tvm.rpc.tracker import Tracker

    _check_address(bind, port)
    running = Tracker(bind, port, port + 1)
    messages.print(f"Tracker at {bind}:{port}. Ctrl-C stops it.")
    try:
        while running.proc.is_alive():
            time.sleep(0.5)
    except KeyboardInterrupt:
        raise typer.Exit(STOPPED) from None
    finally:
        running.proc.kill()  # TVM would ask it to end at 127.0.0.1, where it may not listen.
        running.terminate()


def _check_address(bind: str, port: int) -> None:
    """Checks that something can listen there: TVM's tracker, where it cannot, says neither that nor why."""
    try:
        family = socket.getaddrinfo(bind, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((bind, port))
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"Cannot listen on {bind}:{port}: {reason}. Give another --port, or another --bind.") from error


@board_app.command(
    epilog=examples(
        "ksm-hw board serve --tracker 192.168.1.10:9190 --key rpi4 --bind 0.0.0.0",
        "ksm-hw board serve --bind 0.0.0.0 --port 9091    # for --host, without a tracker",
    )
)
def serve(
    tracker: Annotated[str | None, typer.Option(help=r"HOST:PORT of the tracker. \[default: none]")] = None,
    key: Annotated[str, typer.Option(help="What the board calls itself.")] = "board",
    bind: Bind = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65435, help="First port to try, of a hundred.")] = 9091,
    advertise: Annotated[
        str | None, typer.Option(help=r"Address that the tracker hands out. \[default: as the tracker sees the board]")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help=r"Folder for artifacts. \[default: ~/.cache/ksm-hw/board]")] = None,
    opencl: Annotated[bool, typer.Option("--opencl", help="Load the OpenCL runtime into every session.")] = False,
) -> None:
    """Serve this board: artifacts are kept, and sessions run one after the other. On the board; until Ctrl-C."""
    from ksm_hw.boards.address import parse_address
    from ksm_hw.boards.server import ServerOptions, default_cache, serve_board

    libraries: tuple[Path, ...] = ()
    if opencl:
        from ksm_hw.runtime.opencl.build import find_opencl_runtime

        libraries = (find_opencl_runtime(),)
    options = ServerOptions(
        key=key,
        tracker=parse_address(tracker) if tracker else None,
        bind=bind,
        port=port,
        advertise=advertise,
        cache=cache or default_cache(),
        libraries=libraries,
    )
    try:
        log = functools.partial(_log_in_server, logging.getLogger("ksm_hw").level or logging.WARNING)
        serve_board(options, log, on_start=lambda port: messages.print(f"Board '{key}' at {bind}:{port}"))
    except KeyboardInterrupt:
        raise typer.Exit(STOPPED) from None


def _log_in_server(level: int) -> None:
    """In the server's process, where TVM's log would print ours, too."""
    show_log(level)
    for package in PACKAGES:
        logging.getLogger(package).propagate = False


@board_app.command(name="list", epilog=examples("ksm-hw board list --tracker 127.0.0.1:9190"))
def list_boards(
    tracker: Annotated[str, typer.Option(help="HOST:PORT of the tracker.")] = "127.0.0.1:9190",
    as_json: Json = False,
) -> None:
    """List the boards that a tracker knows."""
    from ksm_hw.runtime.tvm_import import import_tvm_runtime

    import_tvm_runtime()
    from ksm_hw.boards.address import parse_address
    from ksm_hw.boards.reaching import known_boards

    boards = known_boards(parse_address(tracker))
    if as_json:
        print_json({"boards": [asdict(board) for board in boards]})
        return
    table = Table(title=f"Boards at {tracker}", title_justify="left")
    for column in ("key", "address", ""):
        table.add_column(column)
    for board in boards:
        table.add_row(board.key, board.address, Text("free", "green") if board.free else Text("busy", "yellow"))
    console.print(table)
