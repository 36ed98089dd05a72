"""What a board and a desk agree on: every function is there, and answers come back as they were given."""

from pathlib import Path

import numpy as np
import pytest

from ksm_hw.boards.protocol import FUNCTIONS, answered, kept_name, result_of
from ksm_hw.boards.server import _Served
from ksm_hw.errors import UserError


def test_a_board_serves_every_function() -> None:
    assert all(callable(getattr(_Served, function)) for function in FUNCTIONS)


@pytest.mark.parametrize("result", [None, 0.5, "task", ["a", {"b": [1, 2]}]])
def test_results_come_back(result: object) -> None:
    assert result_of(answered(lambda: result)()) == result


def test_what_the_user_can_mend_comes_back_as_that() -> None:
    def refuse() -> None:
        raise UserError("The board cannot keep the artifact.")

    with pytest.raises(UserError, match=r"^The board cannot keep the artifact\.$"):
        result_of(answered(refuse)())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("odd")])
def test_nothing_that_goes_wrong_there_looks_like_a_board_that_is_gone(error: Exception) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(UserError, match=str(error.args[-1])):
        result_of(answered(fail)())


def test_images_of_a_wrong_shape_come_back_as_that() -> None:
    class Refusing:
        def run(self, images: np.ndarray) -> np.ndarray:
            raise UserError(f"Expected other images than {list(images.shape)}.")

    class Sent:
        def numpy(self) -> np.ndarray:
            return np.zeros((2, 3), np.float32)

    served = _Served.__new__(_Served)
    served.session = Refusing()
    with pytest.raises(UserError, match=r"other images than \[2, 3\]"):
        result_of(served.run(Sent()))


def test_a_kept_file_goes_by_its_content() -> None:
    assert kept_name("tasks/cars.safetensors", "f00d") == "f00d.safetensors"
    assert Path(kept_name("model.so", "f00d")).suffix == ".so"
