"""`make setup` finds torch for CPUs where pip knows a place that has it, and at PyTorch's index elsewhere."""

import base64
import hashlib
import importlib.util
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ENVIRONMENT = Path(__file__).resolve().parents[2] / "deploy" / "setup" / "environment.py"


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The set-up module over an empty virtual environment, with a pip that knows only what a test gives it."""
    spec = importlib.util.spec_from_file_location("environment", ENVIRONMENT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    purelib = Path(
        subprocess.check_output(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
        ).strip()
    )
    pip_home = Path(importlib.util.find_spec("pip").origin).parent.parent  # type: ignore[union-attr,arg-type]
    (purelib / "pip").symlink_to(pip_home / "pip")
    monkeypatch.setattr(module, "PYTHON", python)
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setenv("PIP_INDEX_URL", empty.as_uri())
    return module


def make_wheel(directory: Path, name: str, version: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}/__init__.py": f"__version__ = '{version}'\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},sha256={digest(text)},{len(text)}\n" for path, text in files.items())
    wheel = directory / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
            archive.writestr(path, text)
    return wheel


def digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def make_index(root: Path, *wheels: Path) -> str:
    """A package index (PEP 503) of these wheels."""
    for wheel in wheels:
        page = root / wheel.name.split("-")[0]
        page.mkdir(parents=True, exist_ok=True)
        (page / "index.html").write_text(f'<a href="{wheel.as_uri().replace("+", "%2B")}">{wheel.name}</a>')
    return root.as_uri()


def version_in(environment: ModuleType, package: str) -> str:
    code = f"import {package}; print({package}.__version__)"
    return subprocess.check_output([environment.PYTHON, "-c", code], text=True).strip()


def test_a_place_that_pip_knows_is_used(
    environment: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = tmp_path / "wheels"
    make_wheel(wheels, "torch", "2.13.0+cpu")
    make_wheel(wheels, "torchvision", "0.28.0")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setattr(environment, "TORCH_INDEX", "file:///nowhere")
    environment.install_torch()
    assert version_in(environment, "torch") == "2.13.0+cpu"
    assert version_in(environment, "torchvision") == "0.28.0"


def test_pytorchs_index_is_asked_where_pip_knows_none(
    environment: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = [make_wheel(tmp_path / "far", n, v) for n, v in (("torch", "2.13.0+cpu"), ("torchvision", "0.28.0+cpu"))]
    monkeypatch.setattr(environment, "TORCH_INDEX", make_index(tmp_path / "index", *wheels))
    environment.install_torch()
    assert version_in(environment, "torch") == "2.13.0+cpu"
    assert version_in(environment, "torchvision") == "0.28.0+cpu"


def test_a_failure_names_what_could_not_be_installed(
    environment: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(environment, "TORCH_INDEX", (tmp_path / "empty").as_uri())
    with pytest.raises(SystemExit, match=r"torch==2\.13\.0\+cpu"):
        environment.install_torch()


def test_the_stamp_changes_with_a_lock_file(
    environment: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = environment.stamp()
    (tmp_path / "cpu.txt").write_text("other==1\n")
    monkeypatch.setattr(environment, "REQUIREMENTS", tmp_path)
    assert environment.stamp() != before


def test_this_interpreter_is_the_one_that_setup_asks_for() -> None:
    assert sys.version_info[:2] == (3, 11)
