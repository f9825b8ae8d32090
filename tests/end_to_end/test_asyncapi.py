"""docs/asyncapi.yaml against a running service: what it names is true and accepted, anything else refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from service import wire
from service.api.sockets import NUMBERS
from service.contract.masks import MASK_FORMATS
from service.errors import SurgsegError
from service.frames import DropReason, Stage
from service.streams.decoded_video import StreamState
from service.streams.synthetic_view import VIEW_SHAPES
from service.wire import encode_picture
from tests.bitstreams import encode_units

jsonschema = pytest.importorskip("jsonschema", reason="the package jsonschema (extra dev) is not installed")
yaml = pytest.importorskip("yaml", reason="the package PyYAML (extra dev) is not installed")

DOCS = Path(__file__).resolve().parents[2] / "docs"
DOCUMENT: dict[str, Any] = yaml.safe_load((DOCS / "asyncapi.yaml").read_text(encoding="utf-8"))
STREAM, SCENE = DOCUMENT["channels"]["stream"], DOCUMENT["channels"]["scene"]
MASKS = DOCUMENT["channels"]["masks"]
FLAT_HWC = np.full((72, 128, 3), 200, np.uint8)
PICTURES = {codec: encode_picture(FLAT_HWC, codec) for codec in ("jpeg", "png")} | {  # type: ignore[arg-type]
    codec: encode_units([FLAT_HWC], codec)[0] for codec in ("h264", "hevc")
}


def parameters(channel: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = channel["bindings"]["ws"]["query"]["properties"]
    return found


def check(value: dict[str, Any], name: str) -> None:
    """Validate against components/schemas/NAME, and let no field pass that the document does not name."""
    schema = {**DOCUMENT["components"]["schemas"][name], "components": DOCUMENT["components"]}
    jsonschema.Draft202012Validator(schema).validate(value)
    unnamed = set(value) - set(schema["properties"])
    assert not unnamed, f"{name} has fields that the document does not name: {unnamed}"


def check_text(text: str | bytes) -> dict[str, Any]:
    assert isinstance(text, str)
    event: dict[str, Any] = json.loads(text)
    check(event, event["type"])
    return event


def check_mask(message: str | bytes) -> dict[str, Any]:
    assert isinstance(message, bytes)
    size = int.from_bytes(message[:4], "big")
    header: dict[str, Any] = json.loads(message[4 : 4 + size])
    check(header, "maskHeader")
    assert set(header["latency_ms"]) <= set(
        DOCUMENT["components"]["schemas"]["maskHeader"]["properties"]["latency_ms"]["properties"]
    )
    return header


def drain(connection: ClientConnection) -> Iterator[str | bytes]:
    try:
        while True:
            yield connection.recv(timeout=60)
    except ConnectionClosed:
        return


def push(connection: ClientConnection, picture: bytes, captured_at_us: int = 7) -> None:
    connection.send(captured_at_us.to_bytes(8, "big") + picture)


def test_the_document_is_whole() -> None:
    assert DOCUMENT["asyncapi"] == "3.0.0"
    for reference in find_references(DOCUMENT):
        node: Any = DOCUMENT
        for key in reference.removeprefix("#/").split("/"):
            node = node[key]
    for schema in DOCUMENT["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def choices(channel: dict[str, Any]) -> dict[str, Any]:
    """The parameters that have named values."""
    return {name: schema for name, schema in parameters(channel).items() if "enum" in schema}


def find_references(node: Any) -> Iterator[str]:
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
    for child in children:
        yield from find_references(child)
    if isinstance(node, dict) and isinstance(node.get("$ref"), str):
        yield node["$ref"]


def test_the_document_lists_what_the_code_knows() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    assert set(parameters(STREAM)) == {"codec", "mask", "mode", "shutdown", *NUMBERS}
    for name, (least, most) in NUMBERS.items():
        schema = parameters(STREAM)[name]
        assert (schema["minimum"], schema["maximum"]) == (least, most)
        assert schema["type"] == ("integer" if isinstance(least, int) else "number")
    assert tuple(parameters(STREAM)["codec"]["enum"]) == wire.CODECS
    assert tuple(parameters(STREAM)["mask"]["enum"]) == MASK_FORMATS
    assert tuple(parameters(STREAM)["mode"]["enum"]) == wire.MODES
    assert set(parameters(SCENE)["view"]["enum"]) == set(VIEW_SHAPES)
    assert tuple(parameters(STREAM)["shutdown"]["enum"]) == wire.SHUTDOWNS
    assert set(STREAM["messages"]) == {"frame", "end", "mask", *wire.EVENT_TYPES}
    assert set(MASKS["messages"]) == {"mask", *wire.EVENT_TYPES} - {"leaving"}
    assert tuple(parameters(MASKS)["mask"]["enum"]) == MASK_FORMATS
    assert set(schemas["notice"]["properties"]["state"]["enum"]) == set(StreamState) - {"ended", "failed"}
    assert schemas["ready"]["properties"]["protocol_version"]["const"] == wire.PROTOCOL_VERSION
    assert set(schemas["maskHeader"]["properties"]["dropped"]["properties"]) == set(DropReason)
    assert set(schemas["maskHeader"]["required"]) == set(wire.MaskHeader.__dataclass_fields__)
    assert set(schemas["maskHeader"]["properties"]["latency_ms"]["required"]) == set(Stage) - {Stage.SEND}
    slugs = {SurgsegError.slug, *(kind.slug for kind in SurgsegError.__subclasses__())}
    assert set(schemas["error"]["properties"]["slug"]["enum"]) == slugs


def test_the_prose_says_the_same() -> None:
    prose = (DOCS / "wire-protocol.md").read_text(encoding="utf-8")
    check(json.loads(prose.split("```json")[1].split("```")[0]), "maskHeader")
    for name in wire.EVENT_TYPES:
        row = next(line for line in prose.splitlines() if line.startswith(f"| `{name}` |"))
        fields = DOCUMENT["components"]["schemas"][name]["properties"]
        assert set(row.split("|")[2].replace(", perhaps", ",").strip().replace("`", "").split(", ")) == set(
            fields
        ) - {"type"}
    for name, schema in choices(STREAM).items():
        values = ", ".join(f"`{value}`" for value in schema["enum"])
        assert f"| `{name}` | {values} | `{schema['default']}` |" in prose


def test_both_name_the_same_close_codes() -> None:
    table = (DOCS / "wire-protocol.md").read_text(encoding="utf-8").partition("### Close codes")[2]
    named = {
        int(line[2:6]) for line in table.partition("\n\nAfter")[0].splitlines() if line.startswith("| 1")
    }
    assert set(DOCUMENT["x-close-codes"]) == named


@pytest.mark.parametrize("mode", parameters(STREAM)["mode"]["enum"])
@pytest.mark.parametrize("mask", parameters(STREAM)["mask"]["enum"])
@pytest.mark.parametrize("codec", parameters(STREAM)["codec"]["enum"])
def test_every_named_option_is_accepted_and_its_messages_are_as_described(
    server: Any, codec: str, mask: str, mode: str
) -> None:
    query = f"codec={codec}&mask={mask}&mode={mode}"
    with connect(f"{server.ws_url}{STREAM['address']}?{query}") as connection:
        ready = check_text(connection.recv(timeout=60))
        assert (ready["type"], ready["codec"], ready["mask"], ready["mode"]) == ("ready", codec, mask, mode)
        push(connection, PICTURES[codec], 2**64 - 1)
        header = check_mask(connection.recv(timeout=60))
        assert (header["mask"], header["captured_at_us"], header["sequence"]) == (mask, 2**64 - 1, 1)
        assert (header["width"], header["height"]) == (128, 72)


def test_the_defaults_are_those_of_the_document(server: Any) -> None:
    with connect(server.ws_url + STREAM["address"]) as connection:
        ready = check_text(connection.recv(timeout=60))
    assert {name: ready[name] for name in choices(STREAM)} == {
        name: schema["default"] for name, schema in choices(STREAM).items()
    }


def test_errors_that_the_stream_survives_are_as_described(server: Any) -> None:
    with connect(f"{server.ws_url}{STREAM['address']}?mode=every") as connection:
        check_text(connection.recv(timeout=60))
        connection.send("a text message")
        connection.send(b"short")
        connection.send(bytes(8))
        push(connection, b"not a picture")
        push(connection, PICTURES["png"])
        push(connection, PICTURES["jpeg"][:-20])
        errors = [check_text(connection.recv(timeout=60)) for _ in range(6)]
        assert [error["slug"] for error in errors] == ["invalid-request"] * 3 + ["invalid-picture"] * 3
        assert [error["fatal"] for error in errors] == [False] * 6
        assert [error.get("sequence") for error in errors] == [None, None, None, 1, 2, 3]
        push(connection, PICTURES["jpeg"])
        header = check_mask(connection.recv(timeout=60))
        assert (header["sequence"], header["dropped"]) == (4, {"undecodable": 3})


@pytest.mark.parametrize(
    "query", ["codec=h265", "mask=overlay", "mode=", "codec=JPEG", "colour=red", "Codec=jpeg"]
)
def test_what_the_document_does_not_name_is_refused(server: Any, query: str) -> None:
    with connect(f"{server.ws_url}{STREAM['address']}?{query}") as connection:
        error, *rest = [check_text(message) for message in drain(connection)]
        assert (error["slug"], error["fatal"], rest) == ("invalid-request", True, [])
        assert connection.close_code == 1008


def test_closing_is_as_described(launch_server: Callable[..., Any]) -> None:
    running = launch_server()
    with connect(running.ws_url + STREAM["address"]) as connection:
        check_text(connection.recv(timeout=60))
        assert running.stop() == 0
        assert [check_text(message)["type"] for message in drain(connection)] == ["closing"]
        assert connection.close_code == 1001


def test_leaving_and_end_are_as_described(launch_server: Callable[..., Any]) -> None:
    running = launch_server()
    check(json.loads(wire.END), "end")
    with connect(f"{running.ws_url}{STREAM['address']}?shutdown=move") as connection:
        assert check_text(connection.recv(timeout=60))["shutdown"] == "move"
        running.process.terminate()
        assert check_text(connection.recv(timeout=60))["type"] == "leaving"
        push(connection, PICTURES["jpeg"])
        connection.send(wire.END)
        assert check_mask(connection.recv(timeout=60))["sequence"] == 1
        (closing,) = [check_text(message) for message in drain(connection)]
        assert (closing["type"], closing["received"], closing["dropped"], closing["skipped"]) == (
            "closing",
            1,
            {},
            0,
        )
        assert connection.close_code == 1000


def edges(schema: dict[str, Any]) -> list[Any]:
    return list(schema["enum"]) if "enum" in schema else [schema["minimum"], schema["maximum"]]


@pytest.mark.parametrize(
    ("name", "value"), [(name, edge) for name, schema in parameters(SCENE).items() for edge in edges(schema)]
)
def test_every_named_option_of_the_scene_is_accepted(server: Any, name: str, value: Any) -> None:
    query = {"width": 128, "height": 64, "fps": 30} | {name: value}
    with connect(
        f"{server.ws_url}{SCENE['address']}?" + "&".join(f"{key}={text}" for key, text in query.items())
    ) as connection:
        message = connection.recv(timeout=60)
    assert isinstance(message, bytes)
    image_bgr = cv2.imdecode(np.frombuffer(message, np.uint8, offset=8), cv2.IMREAD_COLOR)
    assert image_bgr is not None
    assert image_bgr.shape == (query["height"], query["width"], 3)


def test_a_scene_s_message_can_be_forwarded_unchanged(server: Any) -> None:
    with (
        connect(f"{server.ws_url}{SCENE['address']}?width=128&height=64") as scene,
        connect(server.ws_url + STREAM["address"]) as stream,
    ):
        message = scene.recv(timeout=60)
        assert isinstance(message, bytes)
        check_text(stream.recv(timeout=60))
        stream.send(message)
        assert check_mask(stream.recv(timeout=60))["captured_at_us"] == int.from_bytes(message[:8], "big") > 0


@pytest.mark.parametrize(
    "query",
    [
        "fps=0.5",
        "fps=61",
        "width=63",
        "height=1081",
        "seed=-1",
        "view=round",
        "instruments=5",
        "color=red",
        "fps=x",
    ],
)
def test_what_the_document_does_not_name_is_refused_by_the_scene(server: Any, query: str) -> None:
    with connect(f"{server.ws_url}{SCENE['address']}?{query}") as connection:
        error, *rest = [check_text(message) for message in drain(connection)]
        assert (error["slug"], error.get("fatal", True), rest) == ("invalid-request", True, [])
        assert connection.close_code == 1008
