"""A swap in place: each replica's process gets the new weights, where there is no room for a second one.

    for each replica:  drain the old one -> swap its weights -> probe it -> join as the new one -> (flip)

While the only replica of an engine is swapped nobody can answer: requests wait in the gateway, and go on with the new
base. What fails before the flip is undone by the same way back, or by starting the old model anew; after the flip,
a replica that can't be swapped is started anew with the new model by its watch.
"""

from __future__ import annotations

from gateway.swap import Swap, going_on


class InPlaceSwap(Swap):
    async def run(self) -> None:
        routes = self._ground.routes
        try:
            for number in range(self._new.config.replicas):
                await self._replace(number)
                await self._flip_if_half(number + 1)
                if self.is_flipped:
                    routes.reopen(self._old.row.name)
        except Exception:
            await self._put_right()
            raise
        finally:
            routes.reopen(self._old.row.name)

    async def _replace(self, number: int) -> None:
        old, new = self._old.replica(number), self._new.replica(number)
        async with self._clock.step("drain", old):
            if not self.is_flipped and self._ground.routes.in_service(self._old.row.name) == {old}:
                self._ground.routes.close(self._old.row.name)
            await self._lineup.detach(old, self._drain_timeout_s)
        replica = await self._lineup.make(self._new.row, number)
        async with self._clock.step("swap", new):
            await replica.swap()
        async with self._clock.step("probe", new):
            await self._probe(replica)
        async with self._clock.step("join", new):
            await self._serve(self._new, number)

    async def _undo(self) -> None:
        """The old weights again, in every replica that has others; those that can't be told are started anew.

        All are watched before any is waited for.
        """
        for number in range(self._old.config.replicas):
            name = self._old.replica(number)
            if name not in self._lineup.names_of(self._old.row.name):
                with going_on(f"{name} is started anew: its weights were not put back"):
                    await self._put_back(number)
        await self._keep(self._old)
        for number in range(self._old.config.replicas):
            with going_on(f"{self._old.replica(number)} is not in service again"):
                await self._serve(self._old, number)

    async def _put_back(self, number: int) -> None:
        await self._lineup.detach(self._new.replica(number), self._drain_timeout_s)
        replica = await self._lineup.make(self._old.row, number)
        if (await replica.status()).engine != self._old.row.name:
            await replica.swap()

    async def _finish(self) -> None:
        """Started anew with the new model, by their watches."""
        for name in self._lineup.names_of(self._old.row.name):
            with going_on(f"{name} is started anew with the new model, though requests are on it"):
                await self._lineup.detach(name, self._drain_timeout_s)
        await self._keep(self._new)
