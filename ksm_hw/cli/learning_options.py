"""Options of the commands that learn tasks."""

from pathlib import Path
from typing import Annotated

import typer

BackboneName = Annotated[
    str, typer.Option("--backbone", help="efficientnet-lite0, a torchvision network, or timm:NAME.")
]
BackboneWeights = Annotated[
    Path | None, typer.Option("--weights", help=r"State dict of the backbone. \[default: ImageNet weights]")
]
Epochs = Annotated[int, typer.Option(min=1, max=100_000, help="Passes over the training images.")]
BatchSize = Annotated[int, typer.Option(min=2, max=4096, help="Images a step.")]
ImageSize = Annotated[int, typer.Option(min=32, max=2048, help="Height and width of the input, in pixels.")]
MaskRate = Annotated[float, typer.Option(min=1e-9, max=1, help="Adam's rate for masks, norms and weights.")]
HeadRate = Annotated[float, typer.Option(min=1e-9, max=1, help="Adam's rate for the head.")]
AllImages = Annotated[
    bool, typer.Option("--all-images", help="All images of a named set, not the few thousand that two cores learn.")
]
