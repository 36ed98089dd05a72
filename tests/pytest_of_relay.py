"""Starting pytest where Relay's TVM is: its tests cannot run beside those of Relax."""

import subprocess
import sys
from pathlib import Path

from ksm_hw.runtime.relay.environment import process_variables

TESTS = Path(__file__).parent


def assert_passes_in_relay(tests: str) -> None:
    """Runs tests in Relay's environment, which is installed; pytest itself is the main one's.

    Args:
        tests: their file, below `tests/`.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS / tests)]
    done = subprocess.run(command, env=process_variables(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
