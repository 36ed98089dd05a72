"""Makes an engine's file of a network, in that engine's environment.

    python -m peers.convert MODULE FOLDER

calls `convert(FOLDER)` of `engines/MODULE.py`.
"""

import importlib
import sys
from pathlib import Path

if __name__ == "__main__":
    importlib.import_module(f"peers.engines.{sys.argv[1]}").convert(Path(sys.argv[2]))
