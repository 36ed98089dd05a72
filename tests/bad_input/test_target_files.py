"""Features that LLVM knows for another architecture alone, in a target's file of one's own: found before the build."""

from pathlib import Path

import pytest

from ksm_hw.errors import UserError
from ksm_hw.toolchains.targets import load_target

FILE = """
description = "mine"
device = "cpu"
[tvm]
kind = "llvm"
mtriple = "{architecture}-linux-gnu"
mattr = ["+{feature}"]
"""

FEATURES = {"x86_64": ["avx2"], "aarch64": ["dotprod", "slow-paired-128"]}


@pytest.mark.parametrize("architecture", FEATURES)
@pytest.mark.parametrize(
    ("of", "feature"), [(of, feature) for of, features in FEATURES.items() for feature in features]
)
def test_features_are_those_of_the_architecture(architecture: str, of: str, feature: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(FILE.format(architecture=architecture, feature=feature))
    if architecture == of:
        assert load_target("mine", file=file).tvm["mattr"] == [f"+{feature}"]
        return
    with pytest.raises(UserError, match=f"Target 'mine': LLVM knows no mattr '{feature}'"):
        load_target("mine", file=file)
