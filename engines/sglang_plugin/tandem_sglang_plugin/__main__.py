"""`python -m tandem_sglang_plugin ARGS`: SGLang's server with the gate in it. ARGS are those of SGLang's own launch."""

from __future__ import annotations

import os
import sys


def serve(arguments: list[str]) -> None:
    """Returns when the server has ended."""
    from sglang.srt.server_args import prepare_server_args

    checked = prepare_server_args(arguments)  # sets what the imports below read from the environment

    from sglang.srt.entrypoints.http_server import app, launch_server
    from sglang.srt.utils import kill_process_tree

    from .gate import Gate
    from .inside import SglangInside
    from .settings import Settings

    app.add_middleware(Gate, settings=Settings.from_environment(), inside=SglangInside())
    try:
        launch_server(checked)
    finally:
        kill_process_tree(os.getpid(), include_parent=False)


if __name__ == "__main__":  # SGLang's workers import this module too
    serve(sys.argv[1:])
