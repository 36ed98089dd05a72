"""The weights that a package carries are those of the network that is built of it, without building it."""

import subprocess
import sys

import numpy as np

from ksm_hw.models.backbones import backbone_tensors, pretrained_backbone
from ksm_hw.state_dicts import EFFICIENTNET_LITE0, packaged_tensors


def test_a_packages_weights_are_those_of_the_pretrained_network():
    expected = backbone_tensors(pretrained_backbone(EFFICIENTNET_LITE0))
    found = packaged_tensors(EFFICIENTNET_LITE0)
    assert found is not None and found.keys() == expected.keys()
    for name, array in found.items():
        assert array.dtype == np.float32 and array.flags.c_contiguous
        np.testing.assert_array_equal(array, expected[name], strict=True)
    assert packaged_tensors("resnet18") is None


def test_the_shipped_bundle_is_read_without_building_its_network():
    script = (
        "import sys; from ksm_hw.masks.bundle import load_bundle; from ksm_hw.resources import shipped_bundle; "
        "load_bundle(shipped_bundle()); print({'efficientnet_lite_pytorch', 'ksm_hw.models'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
