"""The command line. Each command parses, calls one function and prints; what is slow to import is imported in it."""

import os
import signal
import sys

# isort: off
try:
    from ksm_hw.cli.app import app
    from ksm_hw.cli.endings import exit_code_of

    # Importing a module adds its commands to the application, in the order of the help.
    from ksm_hw.cli import train, compare, import_checkpoint, export, inspect, calibrate  # noqa: F401
    from ksm_hw.cli import compile, tune, sweep, run, check, profile, listings, targets, boards, opencl, relay  # noqa: F401
except KeyboardInterrupt:
    raise SystemExit(130) from None

__all__ = ["app", "main"]


def main() -> None:
    """Runs the command line, and ends this process with its exit code; see `endings.py`."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # A name may hold what the terminal's encoding does not.
            stream.reconfigure(errors="backslashreplace")
    for asked in (signal.SIGTERM, signal.SIGHUP):  # By `timeout`, a service, a terminal that is closed: as Ctrl-C.
        if signal.getsignal(asked) is signal.SIG_DFL:  # nohup has one ignored.
            signal.signal(asked, signal.default_int_handler)
    os.environ.setdefault("PATH", os.defpath)  # A linker that was found without looks for its parts there.
    sys.exit(exit_code_of(app))
