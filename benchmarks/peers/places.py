"""Where the benchmark keeps what it makes: all of it under build/, where git ignores it."""

from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent.parent
REPOSITORY = BENCHMARKS.parent
PEERS = REPOSITORY / "build" / "peers"
ENVIRONMENTS = PEERS / "environments"
NETWORKS = PEERS / "models"
TUNED = PEERS / "tuned"
RESULTS = PEERS / "results"
