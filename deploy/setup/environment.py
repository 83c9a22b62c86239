"""`make setup`: the virtual environment `.venv` with everything that serves, trains and tests on a CPU.

Run by any Python 3.11 with pip; needs nothing else. It is idempotent: the environment carries a stamp of the lock files
it was made from, and is left alone while they have not changed.
"""

import hashlib
import os
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
REQUIREMENTS = ROOT / "deploy" / "requirements"
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "tandem-setup.sha256"

TORCH_INDEX = os.environ.get("TANDEM_TORCH_INDEX", "https://download.pytorch.org/whl/cpu")
TORCH = "torch==2.13.0+cpu"
TORCHVISION = "torchvision==0.28.0"


def main() -> int:
    if sys.version_info[:2] != (3, 11):
        print(f"make setup: Python 3.11 is needed, this is {sys.version.split()[0]}. Try: make PYTHON=python3.11")
        return 2
    wanted = stamp()
    if STAMP.exists() and STAMP.read_text() == wanted:
        print("make setup: .venv is up to date")
        return 0
    start = time.monotonic()
    if not PYTHON.exists():
        say("creating .venv")
        venv.create(VENV, with_pip=True)
    install_torch()
    say("installing the locked packages (two to three minutes on a fresh machine)")
    pip("--no-deps", "-r", str(REQUIREMENTS / "cpu.txt"), "-r", str(REQUIREMENTS / "dev.txt"))
    compile_packages()
    mend_torchvision()
    say("installing Tandem itself, editable")
    pip("--no-deps", "--no-build-isolation", "-e", str(ROOT))
    STAMP.write_text(wanted)
    say(f"done in {time.monotonic() - start:.0f} s")
    return 0


def stamp() -> str:
    """A hash over every file that decides what the environment holds."""
    files = [*sorted(REQUIREMENTS.glob("*.txt")), *sorted(HERE.glob("*.py")), ROOT / "pyproject.toml"]
    return hashlib.sha256(b"\0".join(f.read_bytes() for f in files)).hexdigest()


def install_torch() -> None:
    """torch for CPUs is not on the default index: a place that pip already knows may have it, PyTorch's index does."""
    say(f"installing {TORCH} and {TORCHVISION}")
    if pip("--no-deps", TORCH, may_fail=True):
        pip("--no-deps", TORCHVISION)
        return
    say(f"pip knows no place that has it; asking {TORCH_INDEX}")
    pip("--no-deps", "--index-url", TORCH_INDEX, TORCH, f"{TORCHVISION}+cpu")


def site_packages() -> Path:
    return Path(output(PYTHON, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"))


def compile_packages() -> None:
    """On all cores, which pip does not; some packages hold templates that are no Python, and that is no failure."""
    say("compiling them")
    run(PYTHON, "-m", "compileall", "-qq", "-j", "0", site_packages(), quiet=True)


def mend_torchvision() -> None:
    """Installs the hook of torchvision_operators.py, only where torchvision cannot be imported without it."""
    packages = site_packages()
    module, line = packages / "torchvision_operators.py", packages / "torchvision_operators.pth"
    module.unlink(missing_ok=True)
    line.unlink(missing_ok=True)
    if run(PYTHON, "-c", "import torchvision", quiet=True) == 0:
        return
    say("torchvision's build is not for this torch: declaring its operators by an import hook")
    module.write_bytes((HERE / "torchvision_operators.py").read_bytes())
    line.write_text("import torchvision_operators\n")
    if run(PYTHON, "-c", "import torchvision") != 0:
        raise SystemExit("make setup: torchvision cannot be imported; see the error above")


def pip(*arguments: str, may_fail: bool = False) -> bool:
    """True if it went well. Where it may not fail, its failure ends the set-up."""
    options = ("-qq", "--disable-pip-version-check", "--no-compile")
    code = run(PYTHON, "-m", "pip", "install", *options, *arguments, quiet=may_fail)
    if code and not may_fail:
        raise SystemExit(f"make setup: pip install {' '.join(arguments)} failed; see its message above")
    return code == 0


def run(*command: object, quiet: bool = False) -> int:
    sink = subprocess.DEVNULL if quiet else None
    return subprocess.run([str(c) for c in command], stdout=sink, stderr=sink, check=False).returncode


def output(*command: object) -> str:
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, check=True).stdout.strip()


def say(message: str) -> None:
    print(f"make setup: {message}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
