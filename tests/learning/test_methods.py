"""The table of methods is what the command line offers and what learning looks up."""

import sys

import pytest
from torch import nn

from ksm_hw.cli import main
from ksm_hw.errors import UserError
from ksm_hw.learning.methods.names import TITLES
from ksm_hw.learning.methods.table import METHODS, prepared_network
from ksm_hw.learning.options import LearningOptions


def test_a_name_that_no_method_has_is_refused_with_the_names_there_are():
    with pytest.raises(
        UserError, match=r"No method named 'fine_tuning'\. Did you mean 'fine-tuning'\? There are: ksm,"
    ):
        prepared_network(nn.Sequential(nn.Linear(3, 2)), 2, LearningOptions("fine_tuning"))


@pytest.mark.parametrize(
    ("option", "bad"), [("--method", "fine_tuning"), ("--granularity", "row"), ("--scale-bits", "0")]
)
def test_the_command_line_offers_what_there_is(
    option: str, bad: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "argv", ["ksm-hw", "train", "--task", "pets", "--data", "nowhere", option, bad])
    with pytest.raises(SystemExit) as exit_:
        main()
    said = capsys.readouterr().err
    offered = {
        "--method": TITLES, "--granularity": ["kernel", "element", "channel", "group"], "--scale-bits": "48",
    }[option]  # fmt: skip
    assert exit_.value.code == 2 and f"'{bad}'" in said and all(f"'{name}'" in said for name in offered)
    assert list(TITLES) == list(METHODS)
