"""What several tasks cost an engine."""

from dataclasses import dataclass

ARTIFACT, HELD, RELOADED = "one artifact", "all models held", "one model, reloaded"


@dataclass(frozen=True)
class TaskCost:
    """An engine with a number of tasks over one backbone.

    Attributes:
        network, threads, engine, title, version: as of a `Result`.
        way: how the tasks are kept: in ksm-hw's one artifact, as so many models, or as one that is replaced.
        tasks: how many.
        before_bytes: that the process held resident with the engine imported and nothing loaded.
        loaded_bytes: after all tasks were loaded and each was run once.
        switch_seconds: median time from one task to the next; None where all models are held.
        first_logits_seconds: the same, the first inference after it included.
        file_bytes: what the tasks take on disk.
        error_of_logits: the largest of any task.
        disturbed: whether the machine was not quiet while the switches were measured.
        failure: why there is nothing of all that; None where there is.
    """

    network: str
    threads: int
    engine: str
    title: str
    way: str
    tasks: int
    version: str = ""
    before_bytes: int = 0
    loaded_bytes: int = 0
    switch_seconds: float | None = None
    first_logits_seconds: float | None = None
    file_bytes: int = 0
    error_of_logits: float = 0.0
    disturbed: bool = False
    failure: str | None = None
