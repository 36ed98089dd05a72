"""In which ways a bundle becomes an artifact. Needs no NumPy: the command line has its choices from here at once."""

from typing import Literal, get_args

# Where masks meet weights: at a switch of the task, in the compiler, or in every inference.
FoldMode = Literal["switch", "bake", "fused"]
FOLD_MODES: tuple[FoldMode, ...] = get_args(FoldMode)

# What an inference computes in; images and logits are float32 in both.
Precision = Literal["float32", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

IntermediateRepresentation = Literal["relax", "relay"]
