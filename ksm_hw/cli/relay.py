"""`ksm-hw relay`: the environment of the compiler through Relay."""

from ksm_hw.cli.app import CommandLine, Json, app, console, examples, messages, print_json

relay_app = CommandLine(
    help="The environment of `--ir relay`: TVM 0.19, beside the main installation.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
app.add_typer(relay_app, name="relay")


@relay_app.command(epilog=examples("ksm-hw relay install", "ksm-hw compile --target host --task all --ir relay"))
def install(as_json: Json = False) -> None:
    """Make the environment: pinned packages, with their hashes; about 100 MB to load."""
    from ksm_hw.runtime.relay import environment

    with messages.status("install TVM 0.19"):
        folder = environment.install()
    if as_json:
        print_json({"environment": str(folder)})
        return
    console.print(f"{folder} is ready: ksm-hw compile --ir relay", soft_wrap=True)


@relay_app.command(epilog=examples("ksm-hw relay remove"))
def remove(as_json: Json = False) -> None:
    """Remove the environment; everything else stays as it is."""
    from ksm_hw.runtime.relay import environment

    folder, removed = environment.environment_folder(), environment.remove()
    if as_json:
        print_json({"environment": str(folder), "removed": removed})
        return
    console.print(f"Removed {folder}" if removed else f"Nothing at {folder}", soft_wrap=True)
