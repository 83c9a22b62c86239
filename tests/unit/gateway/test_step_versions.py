"""The steps of a job's run are loaded on the engines that serve, and no client can ask for one."""

from __future__ import annotations

import pytest

from engines.errors import NotFound
from engines.types import Endpoint, VersionName
from gateway.route import ReplicaRoute, RouteTable
from gateway.types import AliasRow


def test_a_step_that_a_replica_holds_for_a_job_is_no_model_of_a_client() -> None:
    routes = RouteTable()
    routes.set_alias(AliasRow("vqa", "small", VersionName("vqa", 1), None, 1))
    held = frozenset({VersionName("vqa", 1)})
    routes.set_replica(ReplicaRoute("small/0", "small", Endpoint("http://x", "t"), ready=True, versions=held))
    assert routes.resolve("vqa@1").version == VersionName("vqa", 1)
    for model in ("x.1/step@3", "x.1/step", "x.1%2Fstep@3"):
        with pytest.raises(NotFound):
            routes.resolve(model)
