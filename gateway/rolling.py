"""A rolling swap: an engine's replicas go from one generation to the next while users are answered.

    for each replica:  start the new one -> probe it -> (flip) -> drain the old one, which then goes

So there is room needed for one replica more than the engine has. The flip comes once half of the new replicas, or more,
have proved themselves: one transaction lets every alias of the engine name the new base. Before it every alias is
answered by the old base, if by fewer replicas of it where one has gone already, and a failure undoes everything; after
it the release stands, and what fails is brought up by the watch that every replica has.
"""

from __future__ import annotations

from gateway.swap import Swap, going_on


class RollingSwap(Swap):
    async def run(self) -> None:
        try:
            for number in range(self._new.config.replicas):
                await self._bring_up(number)
                await self._flip_if_half(number + 1)
                await self._end_old(self._old.replica(number))
        except Exception:
            await self._put_right()
            raise
        await self._finish()  # an engine that had more replicas before

    async def _bring_up(self, number: int) -> None:
        name = self._new.replica(number)
        async with self._clock.step("start", name):
            await self._serve(self._new, number)
        async with self._clock.step("probe", name):
            await self._probe(self._lineup.replica(name))

    async def _end_old(self, name: str) -> None:
        async with self._clock.step("drain", name):
            await self._lineup.remove(name, self._drain_timeout_s)

    async def _undo(self) -> None:
        """The old ones that went come back by their watch; no alias has named the new ones."""
        await self._keep(self._old)
        for name in self._lineup.names_of(self._new.row.name):
            with going_on(f"{name} was not ended"):
                await self._lineup.remove(name, self._drain_timeout_s)

    async def _finish(self) -> None:
        for name in self._lineup.names_of(self._old.row.name):
            with going_on(f"{name} was not ended"):
                await self._end_old(name)
        await self._keep(self._new)
