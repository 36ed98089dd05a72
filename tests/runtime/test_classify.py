"""Classes come from logits; where these are no numbers there is no class, and it is said of the image."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from ksm_hw.errors import UserError
from ksm_hw.masks.bundle import Bundle
from ksm_hw.runtime.any_session import AnySession
from ksm_hw.runtime.classify import classify


def session_of(bundle: Bundle, wrong: float) -> AnySession:
    """A session whose second image of a batch overflows."""
    pack = bundle.packs["kernel-task"]
    logits = np.zeros((3, len(pack.classes)), np.float32)
    logits[:, 1], logits[1, 0] = 1, wrong
    session = SimpleNamespace(
        tasks=[pack.task],
        task=pack.task,
        descriptions={pack.task: pack.description},
        manifest=SimpleNamespace(input_shape=(3, 3, 32, 32)),
        switch=lambda task: 0.0,
        run_all=lambda batch: logits[: len(batch)],
    )
    return cast(AnySession, session)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_give_no_class(wrong: float, bundle: Bundle, photographs: Path) -> None:
    files = sorted(photographs.iterdir())
    failures: dict[Path, UserError] = {}
    found = list(classify(session_of(bundle, wrong), files, on_failure=failures.__setitem__))
    assert [result.image for result in found] == [str(files[0]), str(files[2])]
    assert list(failures) == [files[1]] and "not finite" in str(failures[files[1]])
    with pytest.raises(UserError, match="not finite"):
        list(classify(session_of(bundle, wrong), files))
