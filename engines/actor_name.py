"""How the actors of replicas are called in Ray.

A serving replica's is `engine:INSTALLATION:ENGINE/N:HASH`; the hash is of the configuration that it was made with. An
engine of a job's own is `own:JOB:RUN/N:HASH`, so that nobody who looks for serving replicas finds it.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass

from engines.config import EngineConfig

NAMESPACE = "tandem"

_SERVING = re.compile(r"^engine:(?P<installation>[^:]+):(?P<engine>[^:/]+)/(?P<number>[0-9]+):(?P<hash>[0-9a-f]+)$")


@dataclass(frozen=True, slots=True)
class ActorName:
    """Of a serving replica: whose it is, which replica, and the configuration it was made with."""

    installation: str
    replica: str
    config_hash: str

    def __str__(self) -> str:
        return f"{prefix_of(self.installation)}{self.replica}:{self.config_hash}"

    @property
    def engine(self) -> str:
        return self.replica.rpartition("/")[0]

    @property
    def number(self) -> int:
        return int(self.replica.rpartition("/")[2])

    @classmethod
    def of(cls, installation: str, replica: str, config: EngineConfig) -> ActorName:
        return cls(installation, replica, hash_of(config))

    @classmethod
    def parse(cls, text: str) -> ActorName | None:
        """None if it is not a serving replica's."""
        match = _SERVING.fullmatch(text)
        return match and cls(match["installation"], f"{match['engine']}/{match['number']}", match["hash"])


def prefix_of(installation: str) -> str:
    """What the names of all serving actors of one installation begin with."""
    return f"engine:{installation}:"


def own_name(job: str, number: int, config: EngineConfig) -> str:
    """A name that no other run of this or another job has."""
    return f"own:{job}:{secrets.token_hex(4)}/{number}:{hash_of(config)}"


def hash_of(config: EngineConfig) -> str:
    return hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:12]


def serving_actors() -> tuple[ActorName, ...]:
    """Of all installations on this Ray, in order. Asks Ray, and blocks."""
    from ray.util import list_named_actors

    listed = (entry["name"] for entry in list_named_actors(all_namespaces=True) if entry["namespace"] == NAMESPACE)
    names = [name for name in map(ActorName.parse, listed) if name is not None]
    return tuple(sorted(names, key=lambda name: (name.installation, name.engine, name.number)))
