"""What the fuzzed service is given: tokens of every scope, pictures, a folder of videos, one of bundles, a record."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service.access.scopes import Scope
from service.access.token_file import add_token
from service.access.tokens import Token, hash_secret
from service.bundles import DEFAULT_BUNDLE
from service.contract.bundle import CARD_NAME, save_card
from service.contract.model_card import ModelCard
from service.streams.synthetic import SyntheticScene
from service.wire import encode_picture
from tests.bitstreams import encode_units
from tests.conftest import Server, start_server, write_small_bundle
from tests.sources import write_codes

HOLDERS: dict[str, tuple[Scope, ...]] = {
    "nobody": (),
    "push": (Scope.PUSH,),
    "view": (Scope.VIEW,),
    "operate": (Scope.OPERATE,),
    "all": tuple(Scope),
}
FILES = (
    "clip.mp4",
    "clip.ts",
    "text.mp4",
    "deep/clip.ts",
    "none.mp4",
    "../secret",
    "outside.mp4",
    ".",
    "",
    "a" * 300,
)
BUNDLES = ("same", "small", "broken", "empty", "text", "../default", "none", ".", "a" * 255)
MOST_STREAMS = 8
MOST_BYTES = 2**20


@dataclass(frozen=True)
class Site:
    """A running service and what its clients have. `secrets` are alike in every run, so requests are as well."""

    server: Server
    folder: Path
    secrets: dict[str, str]
    pictures: dict[str, list[bytes]]

    def stop(self) -> int:
        """End the service; its exit code."""
        return self.server.stop()


def open_site(folder: Path, program: Sequence[str] = ("-m", "service")) -> Site:
    """Lay everything out in `folder` and start the service; `program` is what Python runs instead of it."""
    secrets = {name: "surgseg_" + hashlib.sha256(name.encode()).hexdigest() for name in HOLDERS}
    for name, scopes in HOLDERS.items():
        if scopes:
            add_token(folder / "tokens", Token(name, frozenset(scopes), hash_secret(secrets[name])))
    _lay_out_videos(folder / "videos")
    _lay_out_bundles(folder / "bundles")
    server = start_server(
        *("--port", "0"),
        program=program,
        SURGSEG_TOKENS=str(folder / "tokens"),
        SURGSEG_FILES=str(folder / "videos"),
        SURGSEG_BUNDLES=str(folder / "bundles"),
        SURGSEG_AUDIT=str(folder / "audit"),
        SURGSEG_LOG_FORMAT="json",
        SURGSEG_ADMISSION="off",
        SURGSEG_MAX_STREAMS=str(MOST_STREAMS),
        SURGSEG_SWAP_LIMIT_S="60",
        SURGSEG_MAX_VIEWERS="3",
        SURGSEG_MAX_REQUESTS="4",
        SURGSEG_MAX_BODY_BYTES=str(MOST_BYTES),
        SURGSEG_MAX_PIXELS="4000000",
    )
    return Site(server, folder, secrets, draw_pictures())


def draw_pictures(count: int = 8) -> dict[str, list[bytes]]:
    """Valid frames of every codec, the same in every run."""
    scene = SyntheticScene(320, 256, 5)
    images = [np.ascontiguousarray(scene.render(number / 5)[0]) for number in range(count)]
    pictures: dict[str, list[bytes]] = {
        codec: [encode_picture(image_hwc, codec) for image_hwc in images]  # type: ignore[arg-type]
        for codec in ("jpeg", "png")
    }
    return pictures | {codec: encode_units(images, codec) for codec in ("h264", "hevc")}  # type: ignore[arg-type]


def mutate(data: bytes, source: random.Random) -> bytes:
    """Bytes that were valid: truncated, with bits flipped, a piece repeated, lengthened, or nothing but noise."""
    kind = source.choice(("truncated", "flipped", "repeated", "lengthened", "noise", "empty"))
    if kind == "truncated":
        return data[: source.randrange(len(data) + 1)]
    if kind == "repeated":
        place = source.randrange(len(data) + 1)
        return data[:place] + data[max(0, place - 64) : place] * source.randint(1, 40) + data[place:]
    if kind == "lengthened":
        return data + source.randbytes(source.choice((1, 100, 5000)))
    if kind == "noise":
        return source.randbytes(source.randint(0, 3000))
    if kind == "empty":
        return b""
    flipped = bytearray(data)
    for _ in range(source.randint(1, 50) if data else 0):
        flipped[source.randrange(len(flipped))] ^= 1 << source.randrange(8)
    return bytes(flipped)


def _lay_out_videos(folder: Path) -> None:
    (folder / "deep").mkdir(parents=True)
    write_codes(folder / "clip.mp4", range(50), b_frames=2)
    write_codes(folder / "clip.ts", range(50))
    shutil.copy(folder / "clip.ts", folder / "deep")
    (folder / "text.mp4").write_text("this is no video")
    (folder / "outside.mp4").symlink_to("/etc/hostname")
    (folder.parent / "secret").write_text("nobody may read this")


def _lay_out_bundles(folder: Path) -> None:
    """`same` is the default bundle under another description, so a change to it leaves every mask as it was."""
    for name in ("same", "broken"):
        shutil.copytree(DEFAULT_BUNDLE, folder / name)
    card = ModelCard.load(folder / "same" / CARD_NAME)
    save_card(card.model_copy(update={"description": "The default bundle again."}), folder / "same")
    graph = folder / "broken" / "model.onnx"
    graph.write_bytes(mutate(graph.read_bytes(), random.Random(1)))
    write_small_bundle(folder / "small")
    (folder / "empty").mkdir()
    (folder / "text").write_text("no bundle")
