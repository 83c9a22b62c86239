"""An actor that never answers: every call that a replica can be asked has a deadline, and says which call it was."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pytest

from engines import remote_call
from engines.adapter import Parcel
from engines.adapter.parcel import ParcelFile
from engines.errors import DeadlineExceeded
from engines.remote_call import ActorReplica
from engines.types import UserLoad, VersionName

pytestmark = pytest.mark.timeout(20)
STEP = VersionName("job.1/step", 1)
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "copy": (Parcel(STEP, (ParcelFile.of("adapter_model.safetensors", b"weights"),)),),
    "has_copy": (STEP, {}),
    "load": ("job", STEP, 1.0),
    "release": ("job", STEP),
    "keep_only": ("job", (STEP,)),
    "renew": ("job", (STEP,), 1.0),
    "probe": (STEP, ()),
    "note_users": (UserLoad(p95_ttft_s=None, p95_itl_s=None, num_in_flight=0, num_requests=0),),
    "status": (),
}


class SilentActor:
    """Any method may be called; none is answered."""

    class Method:
        def remote(self, *_: object) -> asyncio.Future[None]:
            return asyncio.get_running_loop().create_future()

    def __getattr__(self, name: str) -> Method:
        return self.Method()


class SilentReplica(ActorReplica):
    def __init__(self) -> None:
        super().__init__("small/0", "small")
        self._actor = SilentActor()

    async def revive(self) -> None: ...


@pytest.fixture(autouse=True)
def short_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    call = ActorReplica._call

    async def hasty(self: ActorReplica, method: str, *arguments: object, timeout_s: float = 30.0) -> Any:
        assert timeout_s <= 30.0
        return await call(self, method, *arguments, timeout_s=0.05)

    monkeypatch.setattr(ActorReplica, "_call", hasty)
    monkeypatch.setattr("ray.put", lambda parcel: parcel)


def test_every_call_is_in_this_test() -> None:
    calls = {name for name, _ in inspect.getmembers(ActorReplica, inspect.iscoroutinefunction) if name[0] != "_"}
    assert calls - {"revive"} == set(ARGUMENTS)


@pytest.mark.parametrize("method", ARGUMENTS)
async def test_a_call_that_is_not_answered_ends_at_its_deadline(method: str) -> None:
    with pytest.raises(DeadlineExceeded, match=f"small/0 did not answer '{method}'"):
        await getattr(SilentReplica(), method)(*ARGUMENTS[method])


async def test_an_object_store_that_takes_nothing_ends_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_call, "CALL_TIMEOUT_S", 0.05)

    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("asyncio.to_thread", never)
    with pytest.raises(DeadlineExceeded, match=r"object store did not take job\.1/step@1"):
        await SilentReplica().copy(ARGUMENTS["copy"][0])
