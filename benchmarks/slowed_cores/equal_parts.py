"""Artifacts whose loops TVM gives out in equal parts, as it does where ksm-hw leaves it alone."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

from ksm_hw.compiler import relax
from ksm_hw.compiler.build import Built, export_library


@contextlib.contextmanager
def equal_parts() -> Iterator[None]:
    """As long as the block lasts libraries are linked without what shares their loops out (loop_sharing.c).

    Their machine code is the same: they show the pointer that loops are called through, TVM sets it to its own
    function, and that gives each thread an equal part of a loop's steps.
    """

    def export(built: Built, path: Path, architecture: str) -> None:
        export_library(dataclasses.replace(built, for_cpu=False), path, architecture)

    with patch.object(relax, "export_library", export):
        yield
