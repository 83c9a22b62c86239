"""The processes behind each replica, as the machine and Ray's state API know them: what a test kills and asks."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil
from stack import Stack, wait_until

from engines.adapter.copies import copies_root
from engines.lifeline import group_members
from engines.served import TOKEN_VARIABLE

GONE_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class EngineProcess:
    """A running engine: its process group, which the lifeline leads, and where its HTTP answers."""

    group: int
    url: str
    token: str

    def kill(self) -> None:
        """SIGKILL to the whole group, and returns once nothing of it lives."""
        os.killpg(self.group, signal.SIGKILL)
        self.wait_gone()

    def wait_gone(self) -> None:
        wait_until(lambda: not group_members(self.group), f"group {self.group} is gone", GONE_TIMEOUT_S)

    def adapters(self) -> frozenset[str]:
        """Versions that the engine itself says it holds."""
        with self._client() as http:
            answer = http.get("/tandem/adapters")
        assert answer.status_code == 200, answer.text
        return frozenset(adapter["version"] for adapter in answer.json()["adapters"])

    def set_faults(self, **faults: object) -> None:
        """Replaces the faults of a fake engine; none ends them."""
        with self._client() as http:
            answer = http.post("/tandem/faults", json=faults)
        assert answer.status_code == 200, answer.text

    def _client(self) -> httpx2.Client:
        headers = {"Authorization": f"Bearer {self.token}"}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=30.0, trust_env=False)


@dataclass(frozen=True)
class ReplicaProcess:
    """A replica's actor, and its engine if one runs. `name` is `engine/N`."""

    name: str
    actor_name: str
    actor_pid: int
    engine: EngineProcess | None

    @property
    def running(self) -> EngineProcess:
        assert self.engine is not None, f"{self.name} has no engine"
        return self.engine

    def kill_actor(self) -> None:
        """SIGKILL; returns once the engine, which must not outlive it, is gone too."""
        actor = psutil.Process(self.actor_pid)
        actor.kill()
        psutil.wait_procs([actor], timeout=GONE_TIMEOUT_S)
        if self.engine is not None:
            self.engine.wait_gone()

    def signal_actor(self, number: signal.Signals) -> None:
        os.kill(self.actor_pid, number)

    def copy_of(self, version: str) -> Path:
        """The directory of this replica's own copy of a version's files."""
        return copies_root(self.actor_name) / version


def find_replicas(stack: Stack) -> dict[str, ReplicaProcess]:
    """Replicas whose actor lives, by name."""
    found = {}
    for actor in _actors(stack):
        parts = str(actor["name"] or "").split(":")
        if actor["state"] == "ALIVE" and parts[0] == "engine" and actor["pid"]:
            name, pid = parts[2], int(str(actor["pid"]))
            found[name] = ReplicaProcess(name, str(actor["name"]), pid, _engine_of(pid))
    return found


def replica(stack: Stack, name: str) -> ReplicaProcess:
    return find_replicas(stack)[name]


def engine_groups(stack: Stack) -> frozenset[int]:
    """Process groups of all engine servers that log into this stack's directory, whoever their parent is."""
    groups = set()
    for pid in stack.engine_pids():
        try:
            groups.add(os.getpgid(pid))
        except ProcessLookupError:  # it ended while we looked
            continue
    return frozenset(groups)


def _actors(stack: Stack) -> list[dict[str, object]]:
    head = json.loads((stack.data / "run" / "ray.json").read_text())
    token = Path(head["token_path"]).read_text().strip()
    with httpx2.Client(base_url=head["dashboard"], timeout=30.0, trust_env=False) as http:
        answer = http.get("/api/v0/actors", params={"limit": 1000}, headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 200, answer.text
    rows: list[dict[str, object]] = answer.json()["data"]["result"]["result"]
    return rows


def _engine_of(actor_pid: int) -> EngineProcess | None:
    try:
        below = psutil.Process(actor_pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return None
    for process in below:
        try:
            words, environment = process.cmdline(), process.environ()
            if "--port" in words and TOKEN_VARIABLE in environment and "-S" not in words[1:3]:
                port = words[words.index("--port") + 1]
                return EngineProcess(os.getpgid(process.pid), f"http://127.0.0.1:{port}", environment[TOKEN_VARIABLE])
        except (psutil.NoSuchProcess, psutil.ZombieProcess, ProcessLookupError):
            continue
    return None
