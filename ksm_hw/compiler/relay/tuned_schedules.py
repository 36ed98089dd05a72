"""The schedules of a tune, for the compiler. Runs in Relay's environment."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import tvm

from ksm_hw.compiler.compiled import OnStep
from ksm_hw.compiler.tuning.progress import TunerName
from ksm_hw.errors import UserError


@dataclass(frozen=True)
class Schedules:
    """Those that what is compiled takes.

    Attributes:
        meta_schedule: whether inference is built with `meta_schedule` (`build_settings`).
        folder: of the records; None without.
        applied: how many operators of a module of inference have a schedule of the records.
    """

    meta_schedule: bool = False
    folder: Path | None = None
    applied: Callable[[tvm.IRModule, tvm.target.Target], int] = lambda main, target: 0

    def check(self, main: tvm.IRModule, target: tvm.target.Target, on_step: OnStep) -> None:
        """Tells how many operators of a module of inference got a schedule, when all is built.

        Raises:
            UserError: none did.
        """
        if self.folder is None:
            return
        count = self.applied(main, target)
        if not count:
            raise UserError(
                "The tuning records hold none of any operator of this network at this batch and image size. Tune a "
                "bundle of the same backbone: ksm-hw tune --ir relay."
            )
        on_step(f"{count} operators with tuned schedules")


@contextlib.contextmanager
def tuned_schedules(tuned: tuple[TunerName, str] | None) -> Iterator[Schedules]:
    """Lets what is compiled take the schedules of a tuner's folder of records, if there is one.

    Raises:
        UserError: the records are missing or damaged.
    """
    if tuned is None:
        yield Schedules()
        return
    tuner, folder = tuned[0], Path(tuned[1])
    if tuner == "autotvm":
        from ksm_hw.compiler.relay import autotvm_operators

        with autotvm_operators.applied_records(folder) as best:
            yield Schedules(False, folder, lambda main, target: len(best.used))
    else:
        from ksm_hw.compiler.relay import meta_schedule_operators

        with meta_schedule_operators.applied_records(folder) as database:
            yield Schedules(
                True, folder, lambda main, target: meta_schedule_operators.recorded_operators(main, target, database)
            )
