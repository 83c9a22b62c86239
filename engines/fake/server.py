"""The fake's process: `python -m engines.fake.server --name NAME --port PORT`; the token comes by environment."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import hmac
import os
import random
import signal
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from pydantic import ValidationError

from engines.adapter import ProbeRecord
from engines.errors import BadRequest, Conflict, EngineFault, NotFound, TandemError
from engines.fake.chat import ChatRequest, Completion, Token, complete, prompt_bytes, prompt_ids
from engines.fake.faults import Faults, Seen
from engines.fake.model import read_model
from engines.fake.shapes import DONE, Reply, Usage
from engines.fake.shelf import FakeShelf
from engines.served import TOKEN_VARIABLE
from engines.wire import (
    AdapterList,
    AddAdapter,
    ProbeReply,
    ProbeRequest,
    PromptBody,
    ScoreBody,
    StatsReply,
    SwapWeights,
    Wire,
)

MAX_BODY_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast tokens come; 0 tokens/s means at once.

    Each takes 1 / tokens_per_s times a log-normal factor: exp(sigma x), x of the standard normal distribution. They
    are drawn from `draws`, one after another.
    """

    tokens_per_s: float
    first_token_delay_s: float
    sigma: float = 0.0
    draws: random.Random = field(default_factory=lambda: random.Random(0))  # noqa: S311  a pace, not a secret

    async def wait(self, place: int) -> None:
        delay_s = self.first_token_delay_s if place == 0 else 0.0
        await asyncio.sleep(delay_s + (self.token_s() if self.tokens_per_s > 0 else 0.0))

    def token_s(self) -> float:
        """Seconds that the next token takes."""
        return self.draws.lognormvariate(0.0, self.sigma) / self.tokens_per_s


class FakeServer:
    """The routes, over one shelf, one set of faults and one record of what was seen."""

    def __init__(self, name: str, weights: str, shelf: FakeShelf, pace: Pace) -> None:
        """`weights` is what the bare base answers by, as adapters do by their hash."""
        self._base = f"{name}@0"
        self._weights = weights
        self._shelf = shelf
        self._pace = pace
        self._faults = Faults()
        self._seen = Seen()
        self._running = asyncio.Event()
        self._running.set()
        self._is_spoilt = False

    def app(self, token: str) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_answer_errors, _guard(token)])
        app.add_routes(
            [
                web.post("/v1/chat/completions", self.chat),
                web.get("/v1/models", self.models),
                web.get("/health", self.health),
                web.get("/metrics", self.metrics),
                web.post("/tandem/adapters", self.add),
                web.get("/tandem/adapters", self.held),
                web.delete("/tandem/adapters/{version:.+}", self.remove),
                web.post("/tandem/probe", self.probe),
                web.get("/tandem/stats", self.stats),
                web.post("/tandem/pause", self.pause),
                web.post("/tandem/weights", self.swap),
                web.post("/tandem/resume", self.resume),
                web.post("/tandem/faults", self.set_faults),
                web.get("/tandem/aborts", self.aborts),
            ]
        )
        return app

    async def chat(self, http: web.Request) -> web.StreamResponse:
        if self._faults.chat_status is not None:
            return _error(self._faults.chat_status, "a fault was set", "internal_error", None)
        request = ChatRequest.model_validate_json(await http.read())
        await self._running.wait()
        prompt = prompt_bytes(request.messages)
        sha256 = self._sha256(request.model)
        weights = sha256 or self._weights
        completions = tuple(self._complete(weights, prompt, request, index) for index in range(request.n))
        ids = prompt_ids(prompt)
        cached = self._seen.cached(hashlib.sha256(request.model.encode() + prompt).digest(), len(ids))
        usage = Usage(len(ids), cached, sum(len(completion.tokens) for completion in completions))
        request_id = http.headers.get("X-Request-Id") or uuid.uuid4().hex
        reply = Reply.of(request_id, request, ids, self._faults)
        self._seen.num_running += 1
        try:
            if request.stream:
                return await self._stream(http, reply, completions, usage)
            # A whole answer's choices are spoken side by side, as an engine batches them.
            await asyncio.gather(*(self._speak(completion) for completion in completions))
            return web.json_response(reply.whole(completions, usage))
        except (asyncio.CancelledError, ConnectionError):
            self._seen.aborted(request_id)
            raise
        finally:
            self._seen.num_running -= 1

    async def models(self, http: web.Request) -> web.StreamResponse:
        names = (self._base, *(held.version for held in self._shelf.held()))
        cards = [{"id": name, "object": "model", "created": int(time.time()), "owned_by": "fake"} for name in names]
        return web.json_response({"object": "list", "data": cards})

    async def health(self, http: web.Request) -> web.StreamResponse:
        return web.Response()

    async def metrics(self, http: web.Request) -> web.StreamResponse:
        lines = (f"fake_requests_running {self._seen.num_running}", f"fake_requests_aborted {self._seen.num_aborted}")
        return web.Response(text="\n".join(lines) + "\n")

    async def add(self, http: web.Request) -> web.StreamResponse:
        body = AddAdapter.model_validate_json(await http.read())
        await asyncio.sleep(self._faults.load_delay_s)
        if self._faults.load_fails:
            return _error(400, f"{body.version} was not loaded: a fault was set", "adapter_refused", None)
        return self._reply(_body(self._shelf.add(body)))

    async def held(self, http: web.Request) -> web.StreamResponse:
        return _body(AdapterList(adapters=self._shelf.held()))

    async def remove(self, http: web.Request) -> web.StreamResponse:
        self._shelf.remove(http.match_info["version"])
        return self._reply(web.json_response({}))

    async def probe(self, http: web.Request) -> web.StreamResponse:
        body = ProbeRequest.model_validate_json(await http.read())
        sha256 = self._sha256(body.version)
        return _body(ProbeReply(scores=[self._score(body.version, sha256, prompt) for prompt in body.prompts]))

    async def stats(self, http: web.Request) -> web.StreamResponse:
        seen = self._seen
        return _body(
            StatsReply(
                num_running=seen.num_running,
                num_waiting=0,
                kv_cache_usage=0.0,
                prefix_cache_hit_tokens=seen.cached_tokens,
                num_aborted=seen.num_aborted,
            )
        )

    async def pause(self, http: web.Request) -> web.StreamResponse:
        """Nothing is under way in the tests that pause it, so that nothing is aborted."""
        self._running.clear()
        return web.json_response({})

    async def swap(self, http: web.Request) -> web.StreamResponse:
        body = SwapWeights.model_validate_json(await http.read())
        self._check_whole()
        if self._running.is_set():
            raise Conflict("the engine computes; pause it first")
        model = read_model(body.path)
        if not model.starts:
            self._is_spoilt = True
            raise EngineFault(f"{body.path} says that it does not start")
        self._shelf.clear()
        self._base, self._weights = body.base, model.weights
        return web.json_response({})

    async def resume(self, http: web.Request) -> web.StreamResponse:
        self._check_whole()
        self._running.set()
        return web.json_response({})

    def _check_whole(self) -> None:
        if self._is_spoilt:
            raise EngineFault("its weights were loaded half way and no further; start the engine anew")

    async def set_faults(self, http: web.Request) -> web.StreamResponse:
        self._faults = Faults.model_validate_json(await http.read())
        return _body(self._faults)

    async def aborts(self, http: web.Request) -> web.StreamResponse:
        return _body(self._seen.aborts())

    def _reply(self, reply: web.Response) -> web.Response:
        return web.Response(status=500, text="the reply was lost") if self._faults.replies_lost else reply

    def _sha256(self, model: str) -> str:
        sha256 = "" if model == self._base else self._shelf.sha256_of(model)
        if sha256 is None:
            raise NotFound(f"The model `{model}` does not exist.", param="model")
        return sha256

    def _score(self, version: str, sha256: str, prompt: PromptBody) -> ScoreBody:
        record = self._shelf.record(version, prompt.text, prompt.answer, prompt.image)
        if record is not None:
            return _recorded(record, record.adapter_logprobs if sha256 else record.base_logprobs)
        seed = hashlib.sha256(f"{prompt.text}|{prompt.answer}|{prompt.image}".encode()).digest()
        weights = sha256 or self._weights
        own = hashlib.sha256(weights.encode() + seed).digest()
        places = range(prompt.num_tokens)
        logprobs = [-(seed[place % 32] + (own[place % 32] / 256 if weights else 0.0) + 1) / 64 for place in places]
        return ScoreBody(token_ids=[seed[place % 32] for place in places], logprobs=logprobs)

    def _complete(self, sha256: str, prompt: bytes, request: ChatRequest, index: int) -> Completion:
        completion = complete(sha256, prompt, request, index)
        return replace(completion, finish_reason="length") if self._faults.truncate else completion

    async def _speak(self, completion: Completion) -> None:
        async for _ in self._produce((completion,)):
            pass

    async def _produce(self, completions: tuple[Completion, ...]) -> AsyncIterator[tuple[int, Token, str | None]]:
        """(choice, token, finish reason with the last token), at the set pace and with the set faults."""
        for index, completion in enumerate(completions):
            for place, token in enumerate(completion.tokens):
                await self._fail_at(place)
                await self._pace.wait(place)
                is_last = place == len(completion.tokens) - 1
                yield index, token, completion.finish_reason if is_last else None

    async def _fail_at(self, place: int) -> None:
        if self._faults.die_after_tokens is not None and place >= self._faults.die_after_tokens:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._faults.hang_after_tokens is not None and place >= self._faults.hang_after_tokens:
            await asyncio.Event().wait()

    async def _stream(
        self, http: web.Request, reply: Reply, completions: tuple[Completion, ...], usage: Usage
    ) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await answer.prepare(http)
        for index, completion in enumerate(completions):
            await answer.write(reply.opening(index))
            if not completion.tokens:
                await answer.write(reply.ending(index, completion.finish_reason))
        async for index, token, finish_reason in self._produce(completions):
            await answer.write(reply.piece(index, token, finish_reason))
        if reply.request.stream_options.include_usage:
            await answer.write(reply.usage(usage))
        await answer.write(DONE)
        await answer.write_eof()
        return answer


def _recorded(record: ProbeRecord, logprobs: tuple[float, ...]) -> ScoreBody:
    return ScoreBody(token_ids=list(record.token_ids), logprobs=list(logprobs))


def _body(wire: Wire) -> web.Response:
    return web.Response(body=wire.model_dump_json().encode(), content_type="application/json")


def _error(status: int, message: str, code: str, param: str | None) -> web.Response:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return web.json_response({"error": error}, status=status)


@web.middleware
async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        return _error(400, f"{place}: {first['msg']}", BadRequest.code, place)
    except (web.HTTPNotFound, web.HTTPMethodNotAllowed):
        return _error(404, f"{request.method} {request.path} is not served here", NotFound.code, None)
    except TandemError as error:
        # Refusals of control routes come as vLLM's plugin gives them: 400, 404, 409 or 503.
        status = error.status if isinstance(error, (NotFound, Conflict)) or error.retryable else 400
        return _error(status, error.message, error.code, error.param)


def _guard(token: str) -> Middleware:
    expected = f"Bearer {token}".encode()

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").encode(errors="replace")
        if not hmac.compare_digest(given, expected):
            return _error(401, "the engine's token is missing or wrong", "unauthorized", None)
        return await handler(request)

    return guard


async def serve(options: argparse.Namespace, token: str) -> None:
    """Listens until SIGTERM; ends at once if the model's directory says so."""
    model = read_model(options.model)
    if not model.starts:
        raise SystemExit(f"{options.model} says that it does not start")
    await asyncio.sleep(options.start_delay_s)
    draws = random.Random(options.latency_seed)  # noqa: S311  a pace, not a secret
    pace = Pace(options.tokens_per_s, options.first_token_delay_s, options.token_latency_sigma, draws)
    server = FakeServer(options.name, model.weights, FakeShelf(options.max_adapters, options.max_lora_rank), pace)
    runner = web.AppRunner(server.app(token), handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    try:
        await web.TCPSite(runner, "127.0.0.1", options.port).start()
        await stopped.wait()
    finally:
        await runner.cleanup()


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m engines.fake.server")
    parser.add_argument("--name", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="")
    parser.add_argument("--max-adapters", type=int, default=4)
    parser.add_argument("--max-lora-rank", type=int, default=16)
    parser.add_argument("--tokens-per-s", type=float, default=0.0)
    parser.add_argument("--first-token-delay-s", type=float, default=0.0)
    parser.add_argument("--token-latency-sigma", type=float, default=0.0)
    parser.add_argument("--latency-seed", type=int, default=0)
    parser.add_argument("--start-delay-s", type=float, default=0.0)
    return parser.parse_args(argv)


if __name__ == "__main__":
    asyncio.run(serve(parse(), os.environ[TOKEN_VARIABLE]))
