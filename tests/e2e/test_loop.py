"""The loop on real parts: two vLLM replicas of the FP8 base, Ray, the gateway as a process, a trained adapter."""

import base64
import contextlib
import json
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import psutil
import pytest
from evidence import Supports
from openai import OpenAI
from pictures import faded
from stack import WEIGHTS, Stack
from support_rows import Aspect

pytestmark = [pytest.mark.vllm, pytest.mark.ray, pytest.mark.timeout(400)]

NUM_FEEDBACK = 2000
TEAL = "what color is the shape?"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack.make(tmp_path_factory.mktemp("loop"), "vllm", WEIGHTS / "base-fp8", replicas=2)
    stack.start()
    stack.wait_in_service()
    yield stack
    stack.stop()


@pytest.fixture(scope="module")
def openai(stack: Stack) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{stack.url}/v1", api_key="unused", max_retries=0, timeout=60) as client:
        yield client


def easy_vqa_image(number: int = 3) -> str:
    import easy_vqa

    path = Path(easy_vqa.__file__).parent / "data" / "test" / "images" / f"{number}.png"
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def ask(client: OpenAI, model: str = "vqa", **options: object):  # type: ignore[no-untyped-def]
    content = [{"type": "image_url", "image_url": {"url": easy_vqa_image()}}, {"type": "text", "text": TEAL}]
    return client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": content}], temperature=0, max_tokens=8, **options
    )


def register(stack: Stack, directory: Path) -> str:
    with stack.client() as http:
        answer = http.post("/v1/versions", json={"alias": "vqa", "path": str(directory)})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def test_an_openai_client_streams_what_it_gets_at_once(openai: OpenAI) -> None:
    whole = ask(openai)
    parts = list(ask(openai, stream=True))
    assert "".join(p.choices[0].delta.content or "" for p in parts if p.choices) == whole.choices[0].message.content
    assert whole.model == "small@0"
    assert whole.id.startswith("chatcmpl-")
    assert "chatcmpl-chatcmpl" not in whole.id


def test_a_trained_adapter_is_published_by_differences_and_rolled_back(
    stack: Stack, openai: OpenAI, trained: Path, supports: Supports
) -> None:
    supports(stack.config, Aspect.SFT)
    supports(stack.config, Aspect.SWAP)
    before = ask(openai)
    name = register(stack, trained)
    with stack.client() as http:
        report = http.post("/v1/aliases/vqa/promote", json={"version": name}).json()
        assert list(report["steps"]) == ["verify", "copy", "stage", "probe", "flip"]
        assert "differences" in report["proof"]
        assert report["replicas"] == ["small/0", "small/1"]
        after = ask(openai)
        assert after.model == name
        assert ask(openai, model=name).choices[0].message.content == after.choices[0].message.content
        assert ask(openai, model="small@0").choices[0].message.content == before.choices[0].message.content
        assert 'tandem_publish_seconds_count{step="probe"} 1.0' in http.get("/metrics").text
        back = http.post("/v1/aliases/vqa/rollback", json={}).json()
    assert list(back["steps"]) == ["flip", "drain", "retire"]
    assert ask(openai).model == "small@0"
    with pytest.raises(Exception, match="No model"):
        ask(openai, model=name)


def test_a_near_zero_adapter_passes_by_hashes_and_matched_modules(
    stack: Stack, openai: OpenAI, trained: Path, tmp_path: Path
) -> None:
    name = register(stack, faded(trained, tmp_path / "zero"))
    with stack.client() as http:
        report = http.post("/v1/aliases/vqa/promote", json={"version": name}).json()
        assert "hash" in report["proof"]
        assert "differences" not in report["proof"]
        assert ask(openai).choices[0].message.content == ask(openai, model="small@0").choices[0].message.content
        http.post("/v1/aliases/vqa/rollback", json={})


def test_a_corrupted_adapter_and_one_of_another_base_are_refused_and_nothing_changes(
    stack: Stack, openai: OpenAI, trained: Path, tmp_path: Path
) -> None:
    corrupted = Path(shutil.copytree(trained, tmp_path / "corrupted"))
    weights = corrupted / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64] + bytes(range(64)))
    other = Path(shutil.copytree(trained, tmp_path / "other"))
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps({**manifest, "base_hash": "sha256:" + "0" * 64}))
    with stack.client() as http:
        known = http.get("/v1/versions").json()
        for directory in (corrupted, other):
            answer = http.post("/v1/versions", json={"alias": "vqa", "path": str(directory)})
            assert answer.status_code == 422
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert http.get("/v1/versions").json() == known
    assert ask(openai).model == "small@0"


def test_a_gateway_killed_amid_feedback_loses_none_and_the_engine_is_used_again(
    stack: Stack, openai: OpenAI, trained: Path
) -> None:
    name = register(stack, trained)
    with stack.client() as http:
        http.post("/v1/aliases/vqa/promote", json={"version": name})
        aliases = http.get("/v1/aliases").json()
    completion = ask(openai).id
    engines, gateway = stack.engine_pids(), psutil.Process(stack.gateway_pid())
    assert engines
    acknowledged = send_until_killed(stack, completion)
    gateway.wait(timeout=30)
    assert NUM_FEEDBACK // 2 <= len(acknowledged) < NUM_FEEDBACK
    stack.start()
    assert stack.engine_pids() == engines
    assert ask(openai).model == name
    with stack.client() as http:
        assert http.get("/v1/aliases").json() == aliases
        acknowledged |= {key: send(http, completion, key) for key in range(NUM_FEEDBACK) if key not in acknowledged}
        assert len(acknowledged) == NUM_FEEDBACK
        stored = [f["id"] for f in http.get(f"/v1/interactions/{completion}").json()["feedback"]]
        assert len(stored) == len(set(stored)) == NUM_FEEDBACK
        assert set(stored) == set(acknowledged.values())
        http.post("/v1/aliases/vqa/rollback", json={})


def send(http, completion: str, key: int) -> str:  # type: ignore[no-untyped-def]
    body = {"completion_id": completion, "metric": "correction", "value": f"answer {key}"}
    answer = http.post("/v1/feedback", json=body, headers={"Idempotency-Key": f"key-{key}"})
    assert answer.status_code in (200, 201), answer.text
    return str(answer.json()["id"])


def send_until_killed(stack: Stack, completion: str) -> dict[int, str]:
    """Sends feedback from four threads, and kills the gateway once half of it is acknowledged."""
    acknowledged: dict[int, str] = {}
    half = threading.Event()

    def worker(keys: range) -> None:
        with stack.client() as http, contextlib.suppress(httpx2.TransportError):  # the gateway is gone
            for key in keys:
                acknowledged[key] = send(http, completion, key)
                if len(acknowledged) >= NUM_FEEDBACK // 2:
                    half.set()

    with ThreadPoolExecutor(4) as pool:
        workers = [pool.submit(worker, range(i, NUM_FEEDBACK, 4)) for i in range(4)]
        assert half.wait(timeout=120)
        stack.kill_gateway()
        for one in workers:
            one.result()
    return acknowledged


def test_sigterm_drains_the_gateway_and_leaves_the_engine(stack: Stack) -> None:
    engines = stack.engine_pids()
    gateway = psutil.Process(stack.gateway_pid())
    gateway.send_signal(signal.SIGTERM)
    psutil.wait_procs([gateway], timeout=60)
    assert not gateway.is_running()
    assert stack.engine_pids() == engines
    stack.start()
    assert stack.engine_pids() == engines
