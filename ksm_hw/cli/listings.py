"""`ksm-hw tasks` and `ksm-hw datasets`."""

from dataclasses import asdict

from rich.table import Table
from rich.text import Text

from ksm_hw.cli.app import BundlePath, Json, app, console, examples, print_json


@app.command(epilog=examples("ksm-hw tasks", "ksm-hw tasks --bundle my-tasks --json"))
def tasks(bundle: BundlePath = None, as_json: Json = False) -> None:
    """List the tasks of a bundle, or of an artifact."""
    from ksm_hw.masks.bundle import load_bundle, stored_bytes
    from ksm_hw.resources import shipped_bundle

    loaded = load_bundle(bundle or shipped_bundle())
    packs = loaded.packs.values()
    if as_json:
        rows = [
            {"task": pack.task, "classes": pack.classes, "method": pack.method, "granularity": pack.granularity,
             "image_size": pack.preprocessing.image_size, "bytes": stored_bytes(loaded, pack.task),
             "facts": dict(pack.facts)}
            for pack in packs
        ]  # fmt: skip
        of_backbone = ("backbone", "backbone_sha256", "backbone_precision")
        print_json({**{name: getattr(loaded, name) for name in of_backbone}, "tasks": rows})
        return
    precision = loaded.backbone_precision
    rounded = "" if precision == "float32" else f" at rest in {precision}"
    table = Table(title=f"Tasks over {loaded.backbone} ({loaded.backbone_sha256[:12]}){rounded}", title_justify="left")
    for column in ("task", "classes", "method", "granularity", "pixels", "MB", "accuracy"):
        table.add_column(column)
    for pack in packs:
        accuracy = f"{pack.facts['accuracy']:.1%}" if "accuracy" in pack.facts else ""
        texts = (pack.task, len(pack.classes), pack.method, pack.granularity, pack.preprocessing.image_size)
        table.add_row(*map(str, texts), f"{stored_bytes(loaded, pack.task) / 1e6:.2f}", accuracy)
    console.print(table)


@app.command(epilog=examples("ksm-hw datasets"))
def datasets(as_json: Json = False) -> None:
    """List the real image sets that packages carry, and how each is installed."""
    from ksm_hw.learning.datasets import describe_datasets

    found = describe_datasets()
    if as_json:
        print_json({"datasets": [asdict(entry) for entry in found]})
        return
    for entry in found:
        console.print(Text.assemble((entry.name, "bold"), f": {entry.title}; {entry.licence}"))
        hint = "installed" if entry.installed else entry.install_command
        console.print(f"  {hint}\n", soft_wrap=True)
