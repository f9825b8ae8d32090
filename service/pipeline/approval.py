"""Which bundles may be served, and which of them in the place of another while streams run."""

from __future__ import annotations

from pathlib import Path

from service.contract.bundle import Bundle, open_bundle
from service.errors import BundleError


def open_approved(
    folder: Path, fingerprints: frozenset[str] | None, *, has_whole_graphs: bool = False
) -> Bundle:
    """Open a bundle that may be served; see `open_bundle`. Raises BundleError."""
    bundle = open_bundle(folder, has_whole_graphs=has_whole_graphs)
    if fingerprints is not None and bundle.fingerprint not in fingerprints:
        raise BundleError(
            f"The bundle {bundle.folder} has the fingerprint {bundle.fingerprint}.",
            f"{' or '.join(sorted(fingerprints))}, as SURGSEG_FINGERPRINT says",
            "Fetch a bundle that was approved, or approve this one by its fingerprint.",
        )
    return bundle


def check_succeeds(bundle: Bundle, before: Bundle) -> None:
    """Raise BundleError unless frames that were fitted for the one can be run by the other."""
    size, size_before = bundle.card.input_size, before.card.input_size
    if (size, bundle.card.fit) != (size_before, before.card.fit):
        raise BundleError(
            f"The bundle {name_bundle(bundle)} takes pictures of {size.width} x {size.height} ({bundle.card.fit}).",
            f"{size_before.width} x {size_before.height} ({before.card.fit}), as the frames under way and the decoders "
            "have been fitted",
            "Start the service anew with this bundle.",
        )


def name_bundle(bundle: Bundle) -> str:
    """Name, version and the beginning of the fingerprint, for people."""
    return f"{bundle.card.name} {bundle.card.version} ({bundle.short_fingerprint})"
