"""The network without masks, which a report compares an artifact with: compiled as that was, but for the masks."""

import dataclasses
import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ksm_hw.errors import UserError

if TYPE_CHECKING:
    from ksm_hw.artifact.manifest import Manifest
    from ksm_hw.masks.bundle import Bundle

_log = logging.getLogger(__name__)


def why_not_comparable(artifact: Path, manifest: "Manifest", tuned: Path | None) -> str:
    """Why the network without masks cannot be compiled as an artifact was, for a person; empty where it can be.

    Args:
        artifact, manifest: what it would be compared with.
        tuned: folder of tuning records that were given.

    Raises:
        UserError: torch is missing, or the records are not those that the artifact was compiled with.
    """
    if importlib.util.find_spec("torch") is None:
        raise UserError(
            "Comparing with the network without masks compiles it, and that needs torch, which is not installed. "
            "Install torch, or report with --no-unmasked."
        )
    if manifest.tuning_sha256 is None:
        return ""
    if tuned is None:
        return (
            "it was compiled with tuning records, and without them the network without masks would be slower for that "
            "alone. Give the records: --tuned FOLDER"
        )
    from ksm_hw.compiler.tuning.records_folder import read_header, records_sha256

    read_header(tuned)  # That a folder holds no records is another error than that it holds others.
    if (found := records_sha256(tuned)) != manifest.tuning_sha256:
        raise UserError(
            f"{artifact} was compiled with tuning records of SHA-256 {manifest.tuning_sha256}; those in {tuned} have "
            f"{found}. Give the folder that it was compiled with, or compile it again if that was tuned further."
        )
    return ""


def compile_unmasked(
    manifest: "Manifest", bundle: "Bundle", tuned: Path | None, output: Path, on_step: Callable[[str], None]
) -> Path:
    """Compiles the same tasks without masks: the same heads and norms over the backbone's own weights.

    Against `fused` it is compiled with `switch`: what `fused` pays on every inference is to be seen, and a plain
    network pays none of it.
    """
    on_step("import the compiler")
    from ksm_hw.compiler.compile import compile_bundle
    from ksm_hw.toolchains.targets import CompileTarget

    fold: Literal["bake", "switch"] = "bake" if manifest.fold == "bake" else "switch"
    _log.info("folded with %s, the masks are compared with no masks folded with %s", manifest.fold, fold)
    packs = {task: dataclasses.replace(pack, masks={}) for task, pack in bundle.packs.items()}
    (folder,) = compile_bundle(
        dataclasses.replace(bundle, packs=packs, samples=None),
        CompileTarget(manifest.target, "", manifest.device, dict(manifest.tvm_target), cores=manifest.cores),
        output,
        fold=fold,
        precision=manifest.precision,
        backbone_precision=manifest.backbone_precision,
        batch=manifest.input_shape[0],
        tuned=None if manifest.tuning_sha256 is None else tuned,
        ir=manifest.ir,
        on_step=lambda step: on_step(f"without masks: {step}"),
    )
    return folder
