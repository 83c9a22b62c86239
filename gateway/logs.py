"""The gateway's log: `gateway.log` under the log root, and stderr."""

from __future__ import annotations

import logging
import os
from pathlib import Path

LOG_FILE = "gateway.log"
_STDERR = 2
_OURS = ("gateway", "engines")
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def configure_logging(log_root: Path) -> None:
    """For the process of a gateway, once. Our loggers say `INFO` and above, all others warnings."""
    log_root.mkdir(parents=True, exist_ok=True)
    path = log_root / LOG_FILE
    handlers: list[logging.Handler] = [logging.FileHandler(path, encoding="utf-8")]
    # `tandem serve --detach` sends stderr into the same file.
    if not os.path.samestat(os.fstat(_STDERR), path.stat()):
        handlers.append(logging.StreamHandler())
    logging.basicConfig(level=logging.WARNING, format=_FORMAT, handlers=handlers, force=True)
    for name in _OURS:
        logging.getLogger(name).setLevel(logging.INFO)
