"""A profile as a table in the terminal."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ksm_hw.report.operator_names import Shape, extents
from ksm_hw.report.profile import ArtifactProfile, OperatorProfile
from ksm_hw.report.terminal import milliseconds
from ksm_hw.report.timing import NOISE_LIMIT

_NOISY = (
    f"Rounds differ by more than {NOISE_LIMIT:.0%}: the numbers say little. Stop what else runs on the machine and "
    "profile again."
)
_CACHED = "Over 100 % of peak, bound by memory: the data stayed in caches, which are faster than main memory."
_TOO_LOW = (
    "Over 100 % of peak, bound by compute: the peak was measured while something else ran. Measure it again with "
    "--measure-peak."
)
_CLEARLY_OVER = 1.05  # Times the peak.


def print_profile(console: Console, profile: ArtifactProfile, top: int | None = None) -> None:
    """Prints a profile; with `top` only that many operators, and the others in one line."""
    console.print(Text(profile.artifact, "bold"), soft_wrap=True)
    for name, value in profile_facts(profile):
        console.print(f"  {name}: {value}")
    console.print()
    console.print(_table(profile, top))
    bounds = {operator.bound for operator in profile.operators[:top] if (operator.peak_share or 0) > _CLEARLY_OVER}
    for bound, note in (("memory", _CACHED), ("compute", _TOO_LOW)):
        if bound in bounds:
            console.print(note)
    if profile.inference.noisy:
        console.print(Text(_NOISY, "bold yellow"))


def profile_facts(profile: ArtifactProfile) -> list[tuple[str, str]]:
    """Names and values: what was measured, where, and against what."""
    batch, _, height, width = profile.input_shape
    machine, inference = profile.machine, profile.inference
    size = f"{batch} × {height} × {width} pixels"
    threads = "1 thread" if profile.threads == 1 else f"{profile.threads} threads"
    facts = [
        ("network", f"{profile.backbone}, {size}, {profile.precision}, {profile.fold}, task {profile.task}"),
        ("machine", f"{machine.cpu} ({machine.architecture}), {threads}, load {machine.load:.1f} before"),
    ]
    if profile.peak is None:
        facts.append(("peak", "not measured for int8, boards and GPUs"))
    else:
        flops, bandwidth = profile.peak.flops_per_second / 1e9, profile.peak.bytes_per_second / 1e9
        facts.append(("peak", f"{flops:.0f} GFLOP/s multiply-adds, {bandwidth:.1f} GB/s main memory"))
    median = milliseconds(inference.median_seconds)
    facts.append(("inference", f"{median} ms median of {inference.count}; rounds differ by {inference.spread:.0%}"))
    return facts


def _table(profile: ArtifactProfile, top: int | None) -> Table:
    title = "Operators of an inference, slowest first"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("calls, operator, data → result", overflow="fold")
    rate = "GFLOP/s" if profile.precision == "float32" else "GOP/s"
    for column in ("ms", "share", rate, "MB", "of peak"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("bound", no_wrap=True)
    for operator in profile.operators[:top]:
        name, *numbers = _row(operator)
        table.add_row(Text.assemble(f"{name}\n    ", (_flow(operator.shapes), "dim")), *numbers)
    others = profile.operators[top:] if top is not None else ()
    if others:
        seconds, calls = sum(other.seconds for other in others), sum(other.calls for other in others)
        table.add_row(f"{calls} × others", *_time(profile, seconds), "", "", "", "")
    table.add_section()
    table.add_row("between operators", *_time(profile, profile.between_seconds), "", "", "", "")
    table.add_section()
    table.add_row(*_totals(profile), style="bold")
    return table


def _row(operator: OperatorProfile) -> tuple[str, ...]:
    rate = operator.flops_per_second
    return (
        f"{operator.calls} × {operator.name}",
        milliseconds(operator.seconds),
        f"{operator.share:.1%}",
        f"{rate / 1e9:.1f}" if rate else "–",
        _megabytes(operator.bytes) if operator.bytes is not None else "–",
        f"{operator.peak_share:.0%}" if operator.peak_share is not None else "–",
        operator.bound or "–",
    )


def _totals(profile: ArtifactProfile) -> tuple[str, ...]:
    total = profile.inference.median_seconds
    best = sum(operator.peak_share * operator.seconds for operator in profile.operators if operator.peak_share)
    return (
        "inference",
        *_time(profile, total),
        f"{profile.flops / total / 1e9:.1f}",
        _megabytes(profile.bytes),
        f"{best / total:.0%}" if profile.peak is not None else "–",
        "",
    )


def _time(profile: ArtifactProfile, seconds: float) -> tuple[str, str]:
    shown = milliseconds(seconds) if seconds >= 0 else f"-{milliseconds(-seconds)}"
    return shown, f"{seconds / profile.inference.median_seconds:.1%}"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f}" if count >= 1e7 else f"{count / 1e6:.2f}"


def _flow(shapes: tuple[Shape, ...]) -> str:
    """The first tensor and the last, without the ones that lead their shapes."""
    return " → ".join(extents(shape) for shape in (shapes[0], shapes[-1])) if len(shapes) > 1 else ""
