"""What a device's driver or TVM's runtime of it raises, as a message for the user."""

import contextlib
import re
from collections.abc import Iterator

from ksm_hw.errors import UserError


@contextlib.contextmanager
def device_failures(device: str) -> Iterator[None]:
    """Around calls of TVM: what it raises, such as for a kernel that a driver does not compile, becomes a UserError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # TVM 0.19 writes the stack of its C++ before the message.
        message = re.split(r"^\w+Error: ", str(error), flags=re.MULTILINE)[-1]
        raise UserError(f"The device '{device}' failed: {message}") from error
