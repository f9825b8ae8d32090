"""The bundle that ships with the service, and those of the operator's folder."""

from __future__ import annotations

from pathlib import Path

from service.errors import ForbiddenError, NotFoundError

DEFAULT_BUNDLE = Path(__file__).parent / "default"


def find_bundle(folder: Path | None, name: str) -> Path:
    """The bundle called `name`, a relative path, in the operator's `folder`; None allows none.

    Links that lead out of the folder are refused. Raises ForbiddenError, or NotFoundError where there is no such folder.
    """
    if folder is None:
        raise ForbiddenError(
            "This service changes its model for nobody.",
            "a folder of bundles to choose from",
            "Start it with SURGSEG_BUNDLES=FOLDER.",
        )
    root = folder.resolve()
    try:
        found = (root / name).resolve()
        is_folder = found.is_dir()
    except (OSError, ValueError, RuntimeError):  # too long, a zero byte, links in a circle
        found, is_folder = root, False
    if not found.is_relative_to(root):
        raise ForbiddenError(
            f"The bundle {name!r} lies outside the folder SURGSEG_BUNDLES.",
            "a folder inside it",
            "Copy the bundle there.",
        )
    if not is_folder or found == root:
        raise NotFoundError(
            f"There is no bundle {name!r}.", "a folder inside SURGSEG_BUNDLES", "Copy the bundle there."
        )
    return found
