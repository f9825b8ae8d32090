"""NVIDIA's Python bindings, made ready to check our calls against. None of it needs a GPU or NVIDIA's libraries.

The versions are those of the newest 10 and 11 of TensorRT; the only place where they stand.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TENSORRT = {"10": "10.16.1.11", "11": "11.4.0.106"}
CUDA = ("cuda-bindings==13.5.0", "cuda-pathfinder==1.9.0")
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
ENTRY_POINTS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
WRITER = Path(__file__).with_name("binding_stubs.py")


def write_tensorrt_stubs(major: str, folder: Path) -> None:
    """What mypy needs to know of TensorRT `major`, written to `folder`; skips the test where that cannot be had."""
    bindings = fetch(f"tensorrt-cu13-bindings=={TENSORRT[major]}")
    libraries = folder / "libraries"
    libraries.mkdir(parents=True)
    for name in LIBRARIES:
        compile_empty_library(libraries / f"lib{name}.so.{major}")
    write_stubs("tensorrt", folder, bindings, LD_LIBRARY_PATH=str(libraries))


def write_cuda_stubs(folder: Path) -> None:
    """As `write_tensorrt_stubs`, of CUDA's runtime."""
    folder.mkdir(parents=True)
    write_stubs("cuda", folder, fetch(*CUDA))


def write_stubs(of: str, folder: Path, bindings: Path, **environment: str) -> None:
    """Ask the bindings in a process of their own: what they load should not stay in this one."""
    subprocess.run(
        [sys.executable, str(WRITER), of, str(folder)],
        env={**os.environ, "PYTHONPATH": str(bindings), **environment},
        check=True,
        timeout=120,
    )


def fetch(*requirements: str) -> Path:
    """Packages without what they need, in a folder of this environment where they stay; skips where there are none."""
    folder = Path(sys.prefix) / "nvidia-bindings" / "_".join(requirements)
    if folder.is_dir():
        return folder
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    pip = (
        [uv, "pip", "install", "--python", sys.executable] if uv else [sys.executable, "-m", "pip", "install"]
    )
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    done = subprocess.run(
        [*pip, "--quiet", "--no-deps", "--target", str(partial), *requirements],
        capture_output=True,
        text=True,
        timeout=170,
    )
    if done.returncode:
        shutil.rmtree(partial, ignore_errors=True)
        pytest.skip(f"{', '.join(requirements)} cannot be downloaded: {done.stderr.strip()[-200:]}")
    try:
        partial.rename(folder)
    except OSError:  # another process was quicker
        shutil.rmtree(partial)
    return folder


def compile_empty_library(path: Path) -> None:
    """A library with TensorRT's name and entry points that do nothing: enough for the bindings to load."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("there is no C compiler to stand in for TensorRT's libraries")
    source = "\n".join(f"void *{name}(void) {{ return 0; }}" for name in ENTRY_POINTS)
    command = [compiler, "-shared", "-fPIC", "-xc", "-", "-o", str(path), f"-Wl,-soname,{path.name}"]
    subprocess.run(command, input=source.encode(), check=True, timeout=60)
