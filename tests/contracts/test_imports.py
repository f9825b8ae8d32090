"""Who may import whom: the service needs no torch, and every import contract can fail."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("service", "training", "model_export")

IMPORT_EVERY_MODULE = """
import importlib, pkgutil, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision", "timm", "monai", "onnx", "training", "model_export"}:
            raise ModuleNotFoundError(f"{name} is not part of the service's environment")

sys.meta_path.insert(0, Absent())
import service
names = [m.name for m in pkgutil.walk_packages(service.__path__, "service.") if not m.name.endswith("__main__")]
for name in ["service.__main__", *names]:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name.partition(".")[0] not in {"tensorrt", "cuda"}:  # of the extra `gpu`
            raise
print(len(names))
"""

# For each contract a file of the project and a line that breaks it; a file that does not exist is added.
VIOLATIONS = [
    ("model_export -> training -> service", "training/metrics.py", "import model_export"),
    ("service: every module has its layer", "service/contract/masks.py", "import service.pipeline"),
    ("service: every module has its layer", "service/stray.py", ""),
    (
        "training sees of the service only the contract and its errors",
        "training/metrics.py",
        "import service.backends",
    ),
    (
        "export sees of the service only the contract, its errors and the backends",
        "model_export/card.py",
        "import service.pipeline",
    ),
    ("no torch under service", "service/contract/masks.py", "import torch"),
    (
        "web framework only in service.api, service.app and service.server",
        "service/telemetry.py",
        "import fastapi",
    ),
    (
        "methods do not import each other",
        "training/methods/stray.py",
        "import training.methods.supervised",
    ),
    (
        "backends do not import each other",
        "service/backends/fake.py",
        "import service.backends.onnxruntime_cpu",
    ),
]


def check_contracts(folder: Path) -> tuple[int, str]:
    """Exit code and output of import-linter on the packages in `folder`."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--cache-dir", ".cache"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def copied_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    for name in PACKAGES:
        for path in (REPOSITORY / name).rglob("*.py"):
            copy = folder / path.relative_to(REPOSITORY)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    shutil.copy(REPOSITORY / "pyproject.toml", folder)
    return folder


def test_every_module_of_the_service_imports_without_torch() -> None:
    command = [sys.executable, "-c", IMPORT_EVERY_MODULE]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20


def test_the_block_that_stands_for_a_missing_torch_really_blocks() -> None:
    script = IMPORT_EVERY_MODULE.replace("import service\n", "import torch\n", 1)
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 1
    assert "torch is not part of the service's environment" in done.stderr


def test_import_contracts_hold(copied_packages: Path) -> None:
    code, output = check_contracts(copied_packages)
    assert code == 0, output


def test_every_contract_has_a_violation_that_proves_it() -> None:
    config = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    names = {contract["name"] for contract in config["tool"]["importlinter"]["contracts"]}
    assert names == {name for name, _, _ in VIOLATIONS}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "module", "line"), VIOLATIONS)
def test_a_broken_contract_is_found(copied_packages: Path, name: str, module: str, line: str) -> None:
    path = copied_packages / module
    before = path.read_text(encoding="utf-8") if path.exists() else None
    path.write_text(f"{before or ''}\n{line}\n", encoding="utf-8")
    try:
        code, output = check_contracts(copied_packages)
    finally:
        if before is None:
            path.unlink()
        else:
            path.write_text(before, encoding="utf-8")
    assert code == 1, output
    assert re.search(rf"^{re.escape(name)} BROKEN", output, re.MULTILINE), output
