"""The process of an engine: loads a network once, then measures what it is asked to.

    python -m peers.serve MODULE VARIANT FOLDER THREADS PRECISION

answers with a line of JSON that says what was loaded, then with a line for each line that it reads. Runs in every
engine's environment, so it needs NumPy alone.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Run = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]

WARM_UP_SECONDS = 0.15
# The least that a round has of an engine that takes seconds an inference, so that there is time for many rounds.
WARM_UP_RUNS = 1
FEWEST_RUNS = 2


def measure(run: Run, image: npt.NDArray[np.float32], seconds: float) -> list[float]:
    """Seconds of each of as many inferences as fill a time, after a warm-up. An image goes in and logits come out."""
    start = time.perf_counter()
    warm_ups = 0
    while warm_ups < WARM_UP_RUNS or time.perf_counter() - start < WARM_UP_SECONDS:
        run(image)
        warm_ups += 1
    times: list[float] = []
    while len(times) < FEWEST_RUNS or sum(times) < seconds:
        start = time.perf_counter()
        run(image)
        times.append(time.perf_counter() - start)
    return times


def relative_error(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    """Largest difference, by the largest of the expected values."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def judged(run: Run, images: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> dict[str, float]:
    """How near int8 comes to float32's logits [N, classes] of images [N, 3, H, W].

    `agreement` is the share of images with the same top class. `error_of_logits` is the root mean square of what the
    logits are off by, by that of how float32's differ between images, so that logits that are the same for all
    images have an error of 1, however large they are.
    """
    found = np.concatenate([run(images[at : at + 1]) for at in range(len(images))])
    agreement = float(np.mean(found.argmax(1) == expected.argmax(1)))
    off, differ = found - expected, expected - expected.mean(0)
    return {"agreement": agreement, "error_of_logits": float(np.sqrt(np.square(off).mean() / np.square(differ).mean()))}


def answering(serve: Callable[[Callable[..., None]], None]) -> None:
    """Calls a function with a function that writes a line of JSON; a failure becomes a line as well."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # What libraries print goes to the errors and not between the answers.

    def answer(**content: Any) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    try:
        serve(answer)
    except Exception as error:  # Engines raise many types; for the table each means that this one failed.
        said = (str(error).strip().splitlines() or [""])[0]
        answer(error=f"{type(error).__name__}: {said}"[:300])
        raise


def _serve(answer: Callable[..., None]) -> None:
    module, variant, folder, threads, precision = (
        sys.argv[1],
        sys.argv[2],
        Path(sys.argv[3]),
        int(sys.argv[4]),
        sys.argv[5],
    )
    engine = importlib.import_module(f"peers.engines.{module}")
    image, expected = np.load(folder / "image.npy"), np.load(folder / "logits.npy")
    run: Run = engine.load(folder, threads, variant)
    if precision == "int8":
        answer(
            version=engine.version(),
            **judged(run, np.load(folder / "judged.npy"), np.load(folder / "judged_logits.npy")),
        )
    else:
        answer(version=engine.version(), error_of_logits=relative_error(run(image), expected))
    for line in sys.stdin:
        answer(seconds=measure(run, image, json.loads(line)["seconds"]))


if __name__ == "__main__":
    answering(_serve)
