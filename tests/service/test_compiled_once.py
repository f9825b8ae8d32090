"""What a rehearsal compiles is taken up by the next who opens the bundle, with the same labels."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from service.backends import open_backend
from service.backends.base import is_golden
from service.bundles import DEFAULT_BUNDLE
from service.contract.bundle import open_bundle
from service.processors import run_idle
from tests.service.runtimes import RUN_HERE


@pytest.mark.skipif("openvino" not in RUN_HERE, reason="OpenVINO does not run here")
def test_openvino_takes_up_what_lies_compiled(tmp_path: Path) -> None:
    bundle = open_bundle(DEFAULT_BUNDLE)
    for _ in range(2):
        backend = open_backend("openvino", bundle, batch_sizes=(1, 2), threads=2, compiled=tmp_path)
        masks_nhw = backend.segment(np.ascontiguousarray(bundle.golden_image_hwc[None]))
        assert is_golden(bundle, backend.precision, masks_nhw)
        backend.close()
        compiled = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
        assert len(compiled) == 1, "for calls alone and for calls at once"
    backend = open_backend("openvino", bundle, batch_sizes=(1, 2), threads=2, compiled=tmp_path)
    backend.close()
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == compiled


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="this system has no idle policy")
def test_idle_work_leaves_its_caller_as_it_was() -> None:
    seen: list[tuple[int, int]] = []
    run_idle(lambda: seen.append((os.sched_getscheduler(0), threading.get_ident())))
    assert [policy for policy, _ in seen] == [os.SCHED_IDLE]
    assert seen[0][1] != threading.get_ident()
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
    with pytest.raises(ValueError, match="no"):
        run_idle(_refuse)


def _refuse() -> None:
    raise ValueError("no")
