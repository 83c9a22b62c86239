"""Every line of the log is there once, with its time, whether the gateway runs in the background or not."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

from engines.errors import Refused
from gateway.errors import body_of, log_error

PROGRAM = """
import logging, sys
from pathlib import Path
from gateway.logs import configure_logging

configure_logging(Path(sys.argv[1]))
logging.getLogger("gateway.server").info("first")
logging.getLogger("library").info("not ours")
logging.getLogger("library").warning("second")
"""
LINES = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO gateway\.server: first\n[\d ,:-]+ WARNING library: second\n"
)


def test_lines_go_to_the_file_and_to_stderr(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "logs")], capture_output=True, text=True, timeout=60, check=True
    )
    assert LINES.fullmatch(done.stderr)
    assert (tmp_path / "logs" / "gateway.log").read_text() == done.stderr


def test_lines_are_not_doubled_where_stderr_is_the_file(tmp_path: Path) -> None:
    log = tmp_path / "gateway.log"
    with log.open("ab") as output:
        command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
        subprocess.run(command, stdout=output, stderr=output, timeout=60, check=True)
    assert LINES.fullmatch(log.read_text())


def test_what_others_said_of_an_error_is_logged_and_never_sent(caplog: pytest.LogCaptureFixture) -> None:
    error = Refused("The probe says no.", detail="engine: /secret/path")
    with caplog.at_level(logging.WARNING):
        log_error(error)
    assert "/secret/path" in caplog.text
    assert "/secret/path" not in str(body_of(error))
