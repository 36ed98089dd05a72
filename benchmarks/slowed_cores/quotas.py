"""Cores of any speed: threads each of which gets a share of a core's time, by Linux's control groups (version 1)."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ksm_hw.errors import UserError

MOUNTS = Path("/proc/self/mounts")

# Microseconds that a thread works at a time: the fewest that Linux takes. The longer it rests in one go, the less it
# is like a core that is slow all the time.
_QUOTA = 1000
_WEIGHT = 1 << 18  # The most that Linux takes: other processes have what is left of a core.


@dataclass(frozen=True)
class SlowedThread:
    """A thread in a control group of its own, which is `folder`."""

    folder: Path

    def allow(self, share: float) -> None:
        """Gives it this share of a core."""
        (self.folder / "cpu.cfs_period_us").write_text(str(round(_QUOTA / share)))
        (self.folder / "cpu.cfs_quota_us").write_text(str(_QUOTA))


@contextlib.contextmanager
def slowed_threads(threads: Sequence[int]) -> Iterator[list[SlowedThread]]:
    """The threads of these numbers, until the block ends.

    Raises:
        UserError: the system has no such groups, or this process may not make one.
    """
    parent = _parent()
    made: list[Path] = []
    try:
        for thread in threads:
            made.append(_group(parent, f"ksm-hw-slowed-core-{thread}"))
            (made[-1] / "cpu.shares").write_text(str(_WEIGHT))
            (made[-1] / "tasks").write_text(str(thread))
        yield [SlowedThread(folder) for folder in made]
    finally:
        for folder in made:
            for left in (folder / "tasks").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    (parent / "tasks").write_text(left)
            folder.rmdir()


def check_quotas() -> None:
    """Checks that this process may make such groups.

    Raises:
        UserError: as `slowed_threads`.
    """
    _group(_parent(), "ksm-hw-slowed-cores").rmdir()


def _parent() -> Path:
    """The folder of this process's control group of CPU time."""
    for line in MOUNTS.read_text().splitlines():
        _, mount, kind, options, *_ = line.split()
        if kind == "cgroup" and "cpu" in options.split(","):
            for group in Path("/proc/self/cgroup").read_text().splitlines():
                _, controllers, path = group.split(":", 2)
                if "cpu" in controllers.split(","):
                    return Path(mount) / path.removeprefix("/")
    raise UserError(
        "Cores are slowed by control groups of version 1 with the controller 'cpu', and this system has mounted none "
        "(/proc/self/mounts). Mount it as root: mount -t cgroup -o cpu none FOLDER."
    )


def _group(parent: Path, name: str) -> Path:
    try:
        (parent / name).mkdir()
    except OSError as error:
        raise UserError(
            f"Cores are slowed by control groups, and none can be made in {parent} ({error.strerror}). Run this as "
            "root, where that may be written."
        ) from error
    return parent / name
