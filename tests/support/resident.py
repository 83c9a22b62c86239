"""Resident memory of a stack, process by process, for benchmarks that look for leaks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import psutil
from replicas import ReplicaProcess, find_replicas
from stack import Stack

from engines.lifeline import group_members

MIB = 1 << 20


@dataclass(frozen=True)
class Resident:
    """MiB of memory. `private_mib` leaves out what is shared or of files: Ray's object store is mapped into the gateway
    and the actors, and each page of it counts as resident from the first time that it is read."""

    rss_mib: float
    private_mib: float


@dataclass(frozen=True)
class StackProcesses:
    """The processes of a stack, found once: `sample` then disturbs nobody."""

    gateway_pid: int
    replicas: Mapping[str, ReplicaProcess]

    @classmethod
    def find(cls, stack: Stack) -> StackProcesses:
        return cls(stack.gateway_pid(), find_replicas(stack))

    def sample(self) -> dict[str, Resident]:
        """Of the gateway, each actor, and each engine's process group (sum of its processes)."""
        resident = {"gateway": _resident([self.gateway_pid])}
        for name, one in sorted(self.replicas.items()):
            resident[f"actor {name}"] = _resident([one.actor_pid])
            resident[f"engine {name}"] = _resident(group_members(one.running.group))
        return resident

    def adapters(self) -> dict[str, frozenset[str]]:
        """What each engine itself says it holds."""
        return {name: one.running.adapters() for name, one in sorted(self.replicas.items())}


def _resident(pids: Iterable[int]) -> Resident:
    memory = [psutil.Process(pid).memory_info() for pid in pids]
    return Resident(sum(m.rss for m in memory) / MIB, sum(m.rss - m.shared for m in memory) / MIB)
