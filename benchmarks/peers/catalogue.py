"""What is compared: the engines, with the packages that each gets, and the networks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Precision = Literal["float32", "int8"]  # Those that are compared.

PROJECT = "project"  # The environment that runs the benchmark, with ksm-hw and torch in it.
RELAY = "relay"  # That of `ksm-hw relay install`, on top of it.

# What each environment holds. Versions are pinned so that a table can be made again; those without a remark were the
# newest when this was written.
_TORCH = "torch==2.13.0"  # That of ksm-hw. An unpinned torch brings gigabytes of CUDA packages.
ENVIRONMENTS: Mapping[str, tuple[str, ...]] = {
    # From an exported program to ONNX, and from that to ncnn's files; nothing is measured in it.
    "exporting": (_TORCH, "onnx==1.23.2", "onnxscript==0.7.2", "pnnx==20261020", "numpy==2.4.6"),
    "onnxruntime": ("onnxruntime==1.32.0", "numpy==2.4.6"),
    # Its quantiser needs `onnx`, which the runtime that is measured shall not import.
    "onnxruntime-quantising": ("onnxruntime==1.32.0", "onnx==1.23.2", "numpy==2.4.6"),
    "openvino": ("openvino==2026.4.1",),
    # NNCF 3.4 holds SciPy below 1.18 and brings scikit-learn: what is measured has none of them in its process.
    "openvino-quantising": ("openvino==2026.4.1", "nncf==3.4.0"),
    "ncnn": ("ncnn==1.0.20261020", "numpy==2.4.6"),
    # Its native code is built against one release of torch: 1.5 against 2.13.
    "executorch": ("executorch==1.5.1", _TORCH, "torchao==0.18.0"),
    "mnn": ("MNN==3.6.1", "numpy==2.4.6"),
    # litert-torch takes any torch from 2.4 to 2.14.
    "litert": ("litert-torch==0.10.0", "ai-edge-litert==2.3.0", _TORCH),
    # Compiler and runtime must be of one release: they share a bytecode.
    "iree": ("iree-base-compiler[onnx]==3.13.0", "iree-base-runtime==3.13.0"),
}


@dataclass(frozen=True)
class Engine:
    """An engine.

    Attributes:
        name: for the command line; also of its results.
        title: for tables.
        module: its file in `engines/`.
        environment: in which it runs.
        converters: what makes the files that it reads, in order: a module of `engines/` and an environment.
        variant: which of the ways that the module knows.
        ours: whether it is ksm-hw and no peer.
        variables: environment variables of its process.
    """

    name: str
    title: str
    module: str
    environment: str
    converters: tuple[tuple[str, str], ...] = ()
    variant: str = ""
    ours: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)


_ONNX = ("onnx_file", "exporting")
_PHOTOGRAPHS = ("photographs", PROJECT)

ENGINES: tuple[Engine, ...] = (
    Engine("ksm-hw", "ksm-hw", "ksm_hw_engine", PROJECT, variant="untuned", ours=True),
    Engine("ksm-hw-tuned", "ksm-hw, tuned", "ksm_hw_engine", PROJECT, variant="tuned", ours=True),
    Engine("ksm-hw-relay", "ksm-hw --ir relay", "ksm_hw_engine", RELAY, variant="relay", ours=True),
    Engine("torch", "PyTorch eager", "torch_engine", PROJECT, variant="eager"),
    # With freezing the compiler may repack weights, as all others do.
    Engine("torch-compile", "torch.compile", "torch_engine", PROJECT, variant="compiled",
           variables={"TORCHINDUCTOR_FREEZING": "1"}),
    Engine("onnxruntime", "ONNX Runtime", "onnxruntime_engine", "onnxruntime", (_ONNX,)),
    Engine("openvino", "OpenVINO", "openvino_engine", "openvino", (_ONNX,)),
    Engine("executorch", "ExecuTorch (XNNPACK)", "executorch_engine", "executorch",
           (("executorch_engine", "executorch"),)),
    Engine("litert", "LiteRT (XNNPACK)", "litert_engine", "litert", (("litert_engine", "litert"),)),
    Engine("ncnn", "ncnn", "ncnn_engine", "ncnn", (("ncnn_files", "exporting"),)),
    Engine("mnn", "MNN", "mnn_engine", "mnn", (_ONNX, ("mnn_engine", "mnn"))),
    Engine("iree", "IREE", "iree_engine", "iree", (_ONNX, ("iree_engine", "iree"))),
)  # fmt: skip

INT8_ENGINES: tuple[Engine, ...] = (
    Engine("ksm-hw", "ksm-hw", "ksm_hw_engine", PROJECT, (_PHOTOGRAPHS, ("ksm_hw_calibrated", PROJECT)),
           variant="int8", ours=True),
    Engine("torchao", "torchao, torch.compile", "torchao_engine", PROJECT, (_PHOTOGRAPHS, ("torchao_engine", PROJECT)),
           variant="int8", variables={"TORCHINDUCTOR_FREEZING": "1"}),
    Engine("onnxruntime", "ONNX Runtime", "onnxruntime_engine", "onnxruntime",
           (_PHOTOGRAPHS, _ONNX, ("onnxruntime_int8", "onnxruntime-quantising")), variant="int8"),
    Engine("openvino", "OpenVINO", "openvino_engine", "openvino",
           (_PHOTOGRAPHS, _ONNX, ("openvino_int8", "openvino-quantising")), variant="int8"),
    Engine("executorch", "ExecuTorch (XNNPACK)", "executorch_engine", "executorch",
           (_PHOTOGRAPHS, ("executorch_int8", "executorch")), variant="int8"),
    Engine("litert", "LiteRT (XNNPACK)", "litert_engine", "litert",
           (_PHOTOGRAPHS, ("litert_engine", "litert"), ("litert_int8", "litert")), variant="int8"),
)  # fmt: skip

ENGINES_OF: Mapping[Precision, tuple[Engine, ...]] = {"float32": ENGINES, "int8": INT8_ENGINES}

# Name for the command line, and that of ksm_hw.models.backbones: those that are measured where none is named.
NETWORKS: Mapping[str, str] = {
    "resnet50": "ResNet-50",
    "resnet18": "ResNet-18",
    "vgg16_bn": "VGG16-BN",
    "mobilenet_v2": "MobileNetV2",
    "efficientnet-lite0": "EfficientNet-Lite0",
    "mobilenet_v3_large": "MobileNetV3-Large",
    "regnet_y_400mf": "RegNetY-400MF",
    "shufflenet_v2_x1_0": "ShuffleNetV2",
    "efficientnet_b0": "EfficientNet-B0",
    "densenet121": "DenseNet-121",
    "vit_b_16": "ViT-B/16",
    "swin_t": "Swin-T",
    "convnext_tiny": "ConvNeXt-T",
    "maxvit_t": "MaxViT-T",
}
# Those that are measured where they are named.
FURTHER_NETWORKS: Mapping[str, str] = {
    "alexnet": "AlexNet",
    "convnext_small": "ConvNeXt-S",
    "densenet169": "DenseNet-169",
    "efficientnet_b3": "EfficientNet-B3, 300×300",
    "efficientnet_v2_s": "EfficientNetV2-S",
    "googlenet": "GoogLeNet",
    "inception_v3": "Inception-v3, 299×299",
    "mnasnet1_0": "MNASNet-1.0",
    "mobilenet_v3_small": "MobileNetV3-Small",
    "regnet_x_400mf": "RegNetX-400MF",
    "regnet_y_1_6gf": "RegNetY-1.6GF",
    "resnet34": "ResNet-34",
    "resnext50_32x4d": "ResNeXt-50",
    "shufflenet_v2_x0_5": "ShuffleNetV2-0.5",
    "squeezenet1_1": "SqueezeNet-1.1",
    "swin_v2_t": "Swin-V2-T, 256×256",
    "vgg11": "VGG11",
    "vit_b_32": "ViT-B/32",
    "wide_resnet50_2": "Wide-ResNet-50",
}
TITLES: Mapping[str, str] = {**NETWORKS, **FURTHER_NETWORKS}
IMAGE_SIZE = 224  # Of those that are not named below.
IMAGE_SIZES: Mapping[str, int] = {"efficientnet_b3": 300, "inception_v3": 299, "swin_v2_t": 256}
CLASSES = 1000  # ImageNet's, where one network is measured.
CLASSES_OF_TASKS = 50  # Where there are many tasks: the learned tasks that ship have 6 to 62.
RECIPE = 2  # Raise it when networks.py makes another function: then the networks that are there are made again.
