"""docs/asyncapi.yaml and docs/wire-protocol.md on pulled streams, against a running service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from service.api.streams import StreamInfo, StreamOrder
from service.contract.masks import MASK_FORMATS
from service.streams.decoded_video import StreamState
from tests.conftest import Server
from tests.pulled_rig import WAIT_S, info, pulled

jsonschema = pytest.importorskip("jsonschema", reason="the package jsonschema (extra dev) is not installed")
yaml = pytest.importorskip("yaml", reason="the package PyYAML (extra dev) is not installed")

DOCS = Path(__file__).resolve().parents[2] / "docs"
DOCUMENT: dict[str, Any] = yaml.safe_load((DOCS / "asyncapi.yaml").read_text(encoding="utf-8"))
PROSE = (DOCS / "wire-protocol.md").read_text(encoding="utf-8")


def check(value: dict[str, Any], name: str) -> None:
    """Validate against components/schemas/NAME, and let no field pass that the document does not name."""
    schema = {**DOCUMENT["components"]["schemas"][name], "components": DOCUMENT["components"]}
    jsonschema.Draft202012Validator(schema).validate(value)
    assert set(value) <= set(schema["properties"])


@pytest.mark.parametrize("mask", MASK_FORMATS)
def test_every_message_to_a_viewer_is_as_described(puller: Server, mask: str) -> None:
    address = DOCUMENT["channels"]["masks"]["address"]
    with pulled(puller, "file:codes.mp4", mode="every") as stream_id:
        url = puller.ws_url + address.format(stream=stream_id) + f"?mask={mask}"
        types = []
        with connect(url, open_timeout=WAIT_S) as viewer:
            try:
                while True:
                    message = viewer.recv(WAIT_S)
                    if isinstance(message, str):
                        event = json.loads(message)
                        types.append(event["type"])
                        check(event, event["type"])
                    else:
                        check(json.loads(message[4 : 4 + int.from_bytes(message[:4], "big")]), "maskHeader")
            except ConnectionClosed:
                assert viewer.close_code == 1000
        assert (types[0], types[-1]) == ("ready", "closing")
        described = info(puller, stream_id)
        assert set(described) == set(StreamInfo.model_fields)


@pytest.mark.parametrize("query", ["mask=overlay", "mode=latest", "codec=png"])
def test_what_the_document_does_not_name_is_refused(puller: Server, query: str) -> None:
    with pulled(puller, "file:codes.mp4", loop=True) as stream_id:
        url = f"{puller.ws_url}/v1/streams/{stream_id}/masks?{query}"
        with connect(url, open_timeout=WAIT_S) as viewer:
            error = json.loads(viewer.recv(WAIT_S))
            check(error, "error")
            assert (error["slug"], error["fatal"]) == ("invalid-request", True)
            with pytest.raises(ConnectionClosed):
                viewer.recv(WAIT_S)
            assert viewer.close_code == 1008


def test_the_prose_names_every_field_state_and_default() -> None:
    section = PROSE.split("## Pulled streams")[1].split("\n## ")[0]
    for name in [*StreamOrder.model_fields, *StreamInfo.model_fields, *StreamState]:
        assert f"`{name}`" in section, name
    for state in StreamState:
        assert f"\n| `{state}` |" in section


def test_a_pushed_stream_has_no_viewers_and_is_not_closed_from_outside(puller: Server) -> None:
    with connect(f"{puller.ws_url}/v1/stream", open_timeout=WAIT_S) as pushed:
        stream_id = json.loads(pushed.recv(WAIT_S))["stream"]
        described = info(puller, stream_id)
        assert (described["source"], described["state"], described["width"]) == ("pushed", "running", None)
        refused = httpx.delete(f"{puller.url}/v1/streams/{stream_id}", timeout=WAIT_S)
        assert (refused.status_code, refused.json()["slug"]) == (400, "invalid-request")
        with connect(f"{puller.ws_url}/v1/streams/{stream_id}/masks", open_timeout=WAIT_S) as viewer:
            assert json.loads(viewer.recv(WAIT_S))["slug"] == "not-found"
