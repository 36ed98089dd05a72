"""A session elsewhere: its connection takes one call at a time, whoever calls."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tiny_tasks import tiny_bundle, tiny_manifest

from ksm_hw.runtime.remote_session import RemoteSession


class Connection:
    """Fails where a second call comes before the first is answered."""

    def __init__(self) -> None:
        self.free = threading.Semaphore()

    def call(self, command: str, /, *arguments: object) -> object:
        assert self.free.acquire(blocking=False), "two calls at once"
        time.sleep(0.001)
        self.free.release()
        return 0.5 if command == "switch" else np.zeros((1, 2), np.float32)


def test_threads_take_turns() -> None:
    bundle = tiny_bundle("cars")
    session = RemoteSession(Connection(), tiny_manifest(bundle), {"cars": bundle.packs["cars"].description}, "cars")
    images = np.zeros(session.manifest.input_shape, np.float32)
    with ThreadPoolExecutor(8) as threads:
        assert all(logits.shape == (1, 2) for logits in threads.map(session.run, [images] * 40))
        assert set(threads.map(session.switch, ["cars"] * 40)) == {0.5}
