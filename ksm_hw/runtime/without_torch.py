"""Keeps torch out of a process that only runs artifacts."""

import sys


def hide_torch() -> None:
    """Makes `import torch` fail in this process; call it before the first import of TVM.

    TVM's bindings import torch wherever it is installed, for seconds and hundreds of megabytes, and running an artifact
    needs none of it. A board has no torch at all, so this is also what a board does.
    """
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
