"""Whether the machine was quiet while an engine was measured."""

import statistics
import time
from dataclasses import dataclass

import numpy as np
import psutil

FOREIGN_LIMIT = 0.10  # Cores that other processes may use on average.
SLOWER_LIMIT = 1.10  # How much longer than at its best the calibration may take.
_SIDE = 384  # Of the calibration's matrices: 1.8 MB, in the second and third level of the cache.


@dataclass(frozen=True)
class Quiet:
    """How quiet the machine was during a turn.

    Attributes:
        foreign_cores: cores that processes other than the engine and this one used on average.
        calibration: time of a fixed piece of work just after, by the least that it ever took; says what the first
            does not: a lower clock, or a neighbour on the same hardware.
    """

    foreign_cores: float
    calibration: float

    @property
    def disturbance(self) -> float:
        """How far the machine was from quiet: the worse of the two, 1 where it is at its limit."""
        return max(self.foreign_cores / FOREIGN_LIMIT, (self.calibration - 1) / (SLOWER_LIMIT - 1))

    @property
    def noisy(self) -> bool:
        """Whether a measurement made in that turn is to be repeated."""
        return self.disturbance > 1


class Watch:
    """Watches the machine between `start` and `stop`."""

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        self._matrices = generator.random((2, _SIDE, _SIDE), np.float32)
        self._best = min(self._calibrate() for _ in range(5))
        self._started = (0.0, 0.0)

    def start(self, own_cpu_seconds: float) -> None:
        """Begins; the argument is the CPU time that the engine has used so far."""
        self._started = (time.perf_counter(), self._busy() - own_cpu_seconds)

    def stop(self, own_cpu_seconds: float) -> Quiet:
        """What went on since."""
        began, foreign_before = self._started
        seconds = time.perf_counter() - began
        foreign = self._busy() - own_cpu_seconds - foreign_before
        took = min(self._calibrate() for _ in range(3))
        self._best = min(self._best, took)
        return Quiet(max(0.0, foreign / seconds), took / self._best)

    def _calibrate(self) -> float:
        start = time.perf_counter()
        for _ in range(3):
            self._matrices[0] @ self._matrices[1]
        return time.perf_counter() - start

    @staticmethod
    def _busy() -> float:
        """CPU seconds of the whole machine, less those of this process."""
        times, own = psutil.cpu_times(), psutil.Process().cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # Linux counts guests' time in user's as well.
        twice = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
        return float(sum(times) - twice - idle - own.user - own.system)


def outliers(medians: list[float], limit: float) -> list[int]:
    """Which rounds lie further than a share from the median of all rounds."""
    middle = statistics.median(medians) if medians else 0.0
    return [number for number, median in enumerate(medians) if abs(median / middle - 1) > limit]
