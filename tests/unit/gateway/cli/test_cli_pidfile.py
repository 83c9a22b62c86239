import os
import subprocess
import sys
from pathlib import Path

import pytest

from engines.errors import Conflict
from gateway.cli.pidfile import PidFile

HOLD = """
import sys
from pathlib import Path
from gateway.cli.pidfile import PidFile
file = PidFile(Path(sys.argv[1]))
file.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_held_file_names_its_process_and_refuses_a_second_one(tmp_path: Path) -> None:
    file = PidFile(tmp_path / "run" / "gateway.pid")
    assert file.holder() is None
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(file.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        assert file.holder() == child.pid
        with pytest.raises(Conflict, match=str(child.pid)):
            PidFile(file.path).acquire()
        child.kill()
    assert file.holder() is None


def test_a_file_left_by_a_crash_does_not_stand_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "gateway.pid"
    path.write_text("1\n")
    file = PidFile(path)
    assert file.holder() is None
    file.acquire()
    assert PidFile(path).holder() == os.getpid()
