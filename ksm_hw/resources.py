"""Where the data that ships with ksm-hw lies: target descriptions and the shipped bundle.

A checkout has `targets/` and `bundles/` at its top; an installed wheel has them inside the package as `_data/`.
"""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def targets_folder() -> Path:
    """The folder with one `NAME.toml` for each target."""
    return _data_folder("targets")


def shipped_bundle() -> Path:
    """The bundle of learned tasks that ships with ksm-hw."""
    return _data_folder("bundles") / "efficientnet-lite0"


def _data_folder(name: str) -> Path:
    installed = _PACKAGE / "_data" / name
    return installed if installed.is_dir() else _PACKAGE.parent / name
