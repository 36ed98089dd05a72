"""The application that the commands belong to, and what they share: consoles, options, how they print, `-v`."""

import contextlib
import functools
import gc
import inspect
import json
import logging
import math
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import typer

from ksm_hw import __version__
from ksm_hw.cli.console import PlainConsole

FAULT, STOPPED, NOBODY_READS = 3, 130, 141  # Exit codes beside 0, 1 and 2; the last is what a shell says of SIGPIPE.

PACKAGES = ("ksm_hw", "tvm_passes")  # Ours.

console = PlainConsole()
messages = PlainConsole(stderr=True)

Command = TypeVar("Command", bound=Callable[..., Any])
Verbosity = Annotated[int, typer.Option("-v", count=True, show_default=False, help="Say what is decided; -vv: more.")]


class CommandLine(typer.Typer):
    """An application, or a group of commands: all that is added to it takes `-v`."""

    def command(self, *arguments: Any, **options: Any) -> Callable[[Command], Command]:
        """As `typer.Typer.command`."""
        register = super().command(*arguments, **options)
        return lambda function: register(_taking_verbosity(function))

    def callback(self, *arguments: Any, **options: Any) -> Callable[[Command], Command]:
        """As `typer.Typer.callback`."""
        register = super().callback(*arguments, **options)
        return lambda function: register(_taking_verbosity(function))


def _taking_verbosity(function: Command) -> Command:
    """The function with one parameter more, in the signature that typer reads."""

    @functools.wraps(function)
    def logged(*, verbosity: int, **parameters: Any) -> Any:
        if verbosity:
            show_log(logging.INFO if verbosity == 1 else logging.DEBUG)
        return function(**parameters)

    signature = inspect.signature(function)
    more = inspect.Parameter("verbosity", inspect.Parameter.KEYWORD_ONLY, default=0, annotation=Verbosity)
    # mypy: a function has no such attribute, but `inspect.signature` looks for it first.
    logged.__signature__ = signature.replace(parameters=[*signature.parameters.values(), more])  # type: ignore[attr-defined]
    logged.__annotations__ = {**function.__annotations__, "verbosity": Verbosity}
    return cast(Command, logged)


def show_log(level: int) -> None:
    """Prints what the modules of this toolkit log, and no others', on stderr: for a file or a pipe a line each.

    Processes that this one starts (those that measure, and Relay's) show nothing: their stderr is kept for the message
    when one dies.
    """
    if sys.stderr.isatty():
        from rich.logging import RichHandler

        handler: logging.Handler = RichHandler(
            console=messages, show_level=False, show_path=False, log_time_format="%X"
        )
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s", datefmt="%X"))
    for package in PACKAGES:
        logger = logging.getLogger(package)
        logger.setLevel(level)
        logger.handlers = [handler]  # Not one more where `-v` stands before the command and behind it.


app = CommandLine(
    help="Many vision tasks on one small device: one backbone, learned masks, compiled with Apache TVM.\n\n"
    "Exit codes: 0 done, 1 verification failed, 2 bad input, 3 a fault of ksm-hw, 130 stopped by Ctrl-C, "
    "141 nobody reads the output.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
ArtifactPath = Annotated[Path, typer.Argument(help="Folder that `ksm-hw compile` wrote.", show_default=False)]
ArtifactPaths = Annotated[list[Path], typer.Argument(help="Folders that `ksm-hw compile` wrote.", show_default=False)]
BundlePath = Annotated[Path | None, typer.Option("--bundle", help=r"Backbone and tasks. \[default: the shipped tasks]")]
TargetName = Annotated[str, typer.Option("--target", help="A name from `ksm-hw targets`.")]
TargetFile = Annotated[Path | None, typer.Option("--target-file", help="A target of your own, as in targets/*.toml.")]
HostTarget = Annotated[
    str | None, typer.Option("--host-cpu", help=r"For a GPU target: the CPU target beside it. \[default: the target's]")
]
CudaArch = Annotated[
    str | None, typer.Option("--arch", help="For CUDA: a compute capability, such as sm_80; or several, with commas.")
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, max=1024, help=r"Threads of the CPU, at most one a core. \[default: the target's cores]"),
]
Batch = Annotated[int, typer.Option(min=1, max=1024, help="Images an inference.")]
Tracker = Annotated[str | None, typer.Option(help="HOST:PORT of the tracker that knows the boards.")]
Key = Annotated[str | None, typer.Option(help="What the board calls itself at the tracker.")]
Board = Annotated[str | None, typer.Option("--host", help="HOST:PORT of one board that has no tracker.")]


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        console.print(f"ksm-hw {__version__}")
        raise typer.Exit


def collect_garbage_less_often() -> None:
    """Before a compile: imports and passes make a million objects that stay, which Python would look through often."""
    gc.set_threshold(50_000)


@contextlib.contextmanager
def stopped_by_ctrl_c(what_is_left: str | Callable[[], str]) -> Iterator[None]:
    """Around work: Ctrl-C ends the command with a word of what is left of it, which may be known only then."""
    try:
        yield
    except KeyboardInterrupt:
        left = what_is_left if isinstance(what_is_left, str) else what_is_left()
        messages.print(f"Stopped. {left}", soft_wrap=True)
        raise typer.Exit(STOPPED) from None


def examples(*lines: str) -> str:
    """The end of a command's help."""
    return "Examples:\n\n" + "\n\n".join(f"  $ {line}" for line in lines)


def printable(text: str) -> str:
    """Text for a file as the streams print it: bytes of a name that are no UTF-8 are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def command(*words: object) -> str:
    """A command of ours as a shell takes it, whatever is in the names."""
    return shlex.join(["ksm-hw", *map(str, words)])


def print_json(content: Any) -> None:
    """Prints for scripts; a number that JSON does not know (NaN, infinity) is null."""
    print(json.dumps(_without_nonfinite(content), indent=2, allow_nan=False))


def _without_nonfinite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_nonfinite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_without_nonfinite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
