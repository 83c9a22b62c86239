"""Writes down what a real SGLang answers, for the tests that have no GPU: `python tests/gpu/record_sglang.py FOLDER`.

Starts SGLang's own server (no gate in it) with the command line of our back end, runs `test_sglang_recorded.py`
against it, and leaves exchanges.json (to be committed as tests/data/sglang/exchanges.json), sglang.log and args.json
(the arguments that the server started with) in FOLDER. If it will not start with deterministic inference, it is
started without. TANDEM_SGLANG_PYTHONPATH names the folder with SGLang's packages.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support"), str(ROOT / "tests" / "contract")]

import sglang_machine  # noqa: E402
from chatting import picture, request  # noqa: E402
from sglang_tape import begin_recording  # noqa: E402

from engines.config import EngineConfig  # noqa: E402
from engines.errors import EngineDown  # noqa: E402
from engines.model import family_of  # noqa: E402
from engines.process import ServerProcess, free_port  # noqa: E402
from engines.sglang import arguments, environment  # noqa: E402

START_TIMEOUT_S = 170.0
FIRST_ANSWER_TIMEOUT_S = 80.0
TESTS_TIMEOUT_S = 200.0
TESTS = "tests/unit/engines/test_sglang_recorded.py"


def config_of(args: dict[str, Any]) -> EngineConfig:
    return EngineConfig(
        model=str(ROOT / "learners" / "toy" / "weights" / "base"),
        kind="sglang",
        max_loras=4,
        reserved_for_rollout=1,
        max_model_len=4096,
        args=args,
        env=sglang_machine.environment(os.environ[sglang_machine.SITE_VARIABLE]),
    )


async def start(args: dict[str, Any], log: Path) -> tuple[ServerProcess, str]:
    """The server and its address, once it says that it is well. Raises `EngineDown`."""
    config, port = config_of(args), free_port()
    family = family_of("small", config)
    command = (sys.executable, "-m", "sglang.launch_server", *arguments("small", config, port, family))
    process = ServerProcess(command, {**os.environ, **environment("small", config, family)}, log, name="sglang")
    process.start()
    url = f"http://127.0.0.1:{port}"

    async def answers() -> bool:
        try:
            async with aiohttp.ClientSession() as http, http.get(f"{url}/health") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    begun_s = time.monotonic()
    try:
        await process.wait_ready(answers, START_TIMEOUT_S)
        await ask_first(url)
    except (EngineDown, TimeoutError, aiohttp.ClientError) as error:
        print(f"SGLang did not start with {args}: {error!r}", process.tail(), sep="\n", flush=True)
        await process.stop()
        raise EngineDown("SGLang did not start") from error
    print(f"SGLang answers after {time.monotonic() - begun_s:.0f} s with {args}", flush=True)
    return process, url


async def ask_first(url: str) -> None:
    """Some kernels are built by the first request; raises `ClientError` unless it is answered."""
    body = {**request("small@0", "what color is it?", picture("red"), temperature=1.0), "rid": "first", "stream": False}
    timeout = aiohttp.ClientTimeout(total=FIRST_ANSWER_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout, raise_for_status=True) as http:
        await (await http.post(f"{url}/v1/chat/completions", json=body)).read()


async def record(folder: Path) -> int:
    """Pytest's exit code."""
    args = sglang_machine.arguments()
    try:
        process, url = await start(args, folder / "sglang.log")
    except EngineDown:
        args["enable-deterministic-inference"] = False
        process, url = await start(args, folder / "sglang.log")
    (folder / "args.json").write_text(json.dumps(args))
    recording = folder / "exchanges.json"
    begin_recording(recording, is_seeded=bool(args["enable-deterministic-inference"]))
    env = {**os.environ, "TANDEM_RECORD_SGLANG": url, "TANDEM_RECORDING": str(recording)}
    command = [sys.executable, "-m", "pytest", "-q", "-x" if "-x" in sys.argv else "-ra", "--timeout", "40", TESTS]
    try:
        tests = await asyncio.to_thread(subprocess.run, command, env=env, cwd=ROOT, timeout=TESTS_TIMEOUT_S)
        return tests.returncode
    finally:
        print(process.tail(), flush=True)
        await process.stop()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    sys.exit(asyncio.run(record(folder)))
