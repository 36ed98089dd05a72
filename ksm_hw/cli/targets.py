"""`ksm-hw targets` and `ksm-hw doctor`."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from ksm_hw.cli.app import CommandLine, CudaArch, HostTarget, Json, TargetFile, app, console, examples, print_json

targets_app = CommandLine(help="List what can be compiled for, or show one target.", rich_markup_mode="rich")
app.add_typer(targets_app, name="targets", epilog=examples("ksm-hw targets", "ksm-hw targets show rpi5"))


@targets_app.callback(invoke_without_command=True)
def list_targets(context: typer.Context, as_json: Json = False) -> None:
    """List what can be compiled for."""
    if context.invoked_subcommand is not None:
        return
    from ksm_hw.toolchains.targets import describe_targets

    found = describe_targets()
    if as_json:
        print_json({"targets": [asdict(target) for target in found]})
        return
    table = Table(title="Targets", title_justify="left")
    for column in ("name", "device", "what"):
        table.add_column(column)
    for target in found:
        table.add_row(target.name, target.device, target.description)
    console.print(table)


@targets_app.command(
    epilog=examples("ksm-hw targets show rpi5", "ksm-hw targets show mine --target-file mine.toml --json")
)
def show(
    name: Annotated[str, typer.Argument(help="A name from `ksm-hw targets`.", show_default=False)],
    target_file: TargetFile = None,
    arch: CudaArch = None,
    host: HostTarget = None,
    as_json: Json = False,
) -> None:
    """Show a target as the compiler takes it: what it leaves to this machine is filled in, and LLVM is asked."""
    from ksm_hw.toolchains.targets import load_target, required_cpu_features

    target = load_target(name, file=target_file, arch=arch, host=host)
    features = required_cpu_features(target)
    if as_json:
        print_json({**asdict(target), "cpu_features": features})
        return
    console.print(Text.assemble((target.name, "bold"), f": {target.description}"))
    table = Table(show_header=False)
    for part, content in (("device", {"device": target.device}), ("tvm", target.tvm)):
        for key, value in content.items():
            table.add_row(part, key, str(value))
    table.add_row("needs", "CPU features", ", ".join(features) or "none beyond the architecture's")
    console.print(table)


@app.command(epilog=examples("ksm-hw doctor", "ksm-hw doctor rpi4 mali --json"))
def doctor(
    targets: Annotated[
        list[str] | None, typer.Argument(help=r"Names of targets. \[default: all]", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Check this machine for each target: what is there to compile and to run, and what installs the rest."""
    from ksm_hw.toolchains.doctor import examine

    findings = examine(targets or None)
    if as_json:
        print_json({"targets": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            mark = ("ready  ", "green") if finding.ready else ("missing", "yellow")
            console.print(Text.assemble(mark, " ", (finding.target, "bold"), f": {finding.text}"), soft_wrap=True)
    raise typer.Exit(0 if all(finding.ready for finding in findings) else 1)
