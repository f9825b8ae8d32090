"""Readers for the public data sets and the generic folder, each a table entry: name -> "module:function"."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from service.errors import DataError
from training.data.samples import Sample
from training.registry import find_entry

READERS = {
    "endovis2015_rigid": "training.data.endovis2015_rigid:read",
    "endovis2015_rigid_parts": "training.data.endovis2015_rigid:read_parts",
    "endovis2015_robotic": "training.data.endovis2015_robotic:read",
    "endovis2017": "training.data.endovis2017:read",
    "endovis2017_parts": "training.data.endovis2017:read_parts",
    "endovis2018": "training.data.endovis2018:read",
    "kvasir_instrument": "training.data.kvasir_instrument:read",
    "robotool": "training.data.robotool:read",
    "art_net": "training.data.art_net:read",
    "cholecseg8k": "training.data.cholecseg8k:read",
    "surgical_web_frames": "training.data.surgical_web_frames:read",
    "intermountain": "training.data.intermountain:read",
    "acdc": "training.data.acdc:read",
    "openkbp_ct": "training.data.openkbp_ct:read",
    "ct_nifti": "training.data.ct_nifti:read",
    "folder": "training.data.folder:read",
    "video": "training.data.video_pool:read",
}
FILE_READERS = frozenset({"video"})  # PATH may be a file
OPTION_READERS = frozenset({"ct_nifti"})  # PATH may end in ?key=value&key=value
# What these readers make of their files, in words for whoever sends pictures to a service.
INTENSITIES = {
    "acdc": "training.data.acdc:describe_intensities",
    "openkbp_ct": "training.data.openkbp_ct:describe_intensities",
    "ct_nifti": "training.data.ct_nifti:describe_intensities",
}


def open_data(spec: str) -> Sequence[Sample]:
    """The samples of `READER:PATH`, in a fixed order. Raises DataError when there is nothing to read.

    A labeled picture without its mask, or a mask without its picture, is refused here, so a wrong folder fails at once.
    """
    samples = []
    for entry in read_entries(spec):
        if isinstance(entry, DataError):
            command = f"surgseg-train data check {spec.replace(':', ' ', 1)}"
            remedy = f"{entry.remedy} `{command}` names everything that is wrong."
            raise DataError(entry.found, entry.expected, remedy)
        samples.append(entry)
    if not samples:
        name, _, path = spec.partition(":")
        raise DataError(
            f"{path} holds no frames.", f"the layout of {name}", "See docs/datasets.md for the layout."
        )
    return samples


def read_entries(spec: str) -> Iterator[Sample | DataError]:
    """What the reader of `READER:PATH` finds: samples, and what keeps others from being samples, in a fixed order.

    Raises DataError when there is no such reader or path.
    """
    name, separator, path = spec.partition(":")
    if not separator or not path:
        raise DataError(
            f"{spec!r} names no data.",
            "READER:PATH, for example folder:frames",
            f"Readers: {', '.join(READERS)}.",
        )
    read = find_entry(READERS, "reader", name, "Use the folder reader for data of your own.")
    path, options = _split_options(name, path)
    root = Path(path)
    if not root.is_dir() and not (name in FILE_READERS and root.is_file()):
        raise DataError(
            f"There is no folder {path}.", f"the root of {name}", "Check the path (docs/datasets.md)."
        )
    return iter(read(root, **options))


def describe_intensities(spec: str) -> str:
    """What the reader of `READER:PATH` makes of its files; empty where it takes pictures as they are."""
    name, _, path = spec.partition(":")
    if name not in INTENSITIES:
        return ""
    describe = find_entry(INTENSITIES, "reader", name, "Use the folder reader for data of your own.")
    text: str = describe(**_split_options(name, path)[1])
    return text


def _split_options(name: str, path: str) -> tuple[str, dict[str, str]]:
    if name not in OPTION_READERS:
        return path, {}
    path, _, query = path.partition("?")
    pairs = [part.partition("=") for part in query.split("&") if part]
    return path, {key: value for key, _, value in pairs}
