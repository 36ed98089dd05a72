"""`ksm-hw opencl`: the runtime that runs OpenCL artifacts, which TVM's wheel lacks."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from ksm_hw.artifact.modes import IntermediateRepresentation
from ksm_hw.cli.app import CommandLine, Json, app, console, examples, messages, print_json

opencl_app = CommandLine(
    help="The runtime that runs OpenCL artifacts (Mali), which TVM's wheel lacks.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
app.add_typer(opencl_app, name="opencl")


@opencl_app.command(
    epilog=examples(
        "ksm-hw opencl build",
        "ksm-hw opencl build --arch aarch64 -o rk3588",
        "ksm-hw opencl build --ir relay             # for artifacts of compile --ir relay",
    )
)
def build(
    arch: Annotated[
        Literal["x86_64", "aarch64"] | None, typer.Option(help=r"Of the machine that runs it. \[default: this one's]")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help=r"Folder to put it into. \[default: the cache]")
    ] = None,
    ir: Annotated[
        IntermediateRepresentation,
        typer.Option(help="What the artifacts went through; relay's TVM has another runtime."),
    ] = "relax",
    as_json: Json = False,
) -> None:
    """Build the runtime; a session on this machine does so by itself."""
    from ksm_hw.runtime.opencl.build import build_opencl_runtime, runtime_sources
    from ksm_hw.runtime.relay.opencl.runtime import relay_runtime_sources

    sources = relay_runtime_sources() if ir == "relay" else runtime_sources()
    with messages.status("build the OpenCL runtime"):
        library = build_opencl_runtime(arch or "", output / sources.library if output else None, sources)
    if as_json:
        print_json({"library": str(library), "bytes": library.stat().st_size})
        return
    console.print(f"{library}: {library.stat().st_size / 1e6:.2f} MB", soft_wrap=True)
    console.print(f"On a board: export {sources.variable}=…/{sources.library}", soft_wrap=True)
