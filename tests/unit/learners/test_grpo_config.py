"""The settings of a GRPO job: what contradicts itself is refused by name, before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engines.errors import BadRequest
from learners.config import GrpoConfig, SftConfig, load_job, validate
from learners.toy import __file__ as toy
from rollout.config import RolloutConfig

BASE = Path(toy).parent / "weights" / "base"
GUEST = {"method": "grpo", "model": "m", "data": "d", "rollout": {"engine": "small"}}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rollout": {}}, "rollout: give either engine"),
        ({"rollout": {"engine": "small", "own": {"model": "m"}}}, "rollout: give either engine"),
        ({"rollout": {"engine": "small", "max_runing": 3}}, "rollout.max_runing: no such setting"),
        ({"rewards": []}, "rewards: "),
        ({"rewards": [{"name": "anls"}, {"name": "anls"}]}, "job: rewards: two have the same name"),
        ({"early_stop_evals": 2}, "job: early_stop_evals: needs eval_data"),
        ({"group_size": 2, "rollout": {"engine": "small", "min_group": 3}}, "job: rollout.min_group"),
        (
            {"max_staleness": 2, "rollout": {"own": {"model": "m", "max_loras": 4, "reserved_for_rollout": 3}}},
            "job: rollout.own.reserved_for_rollout: is 3, and max_staleness = 2 needs 4",
        ),
        ({"group_size": 1}, "group_size: "),
        ({"max_staleness": -1}, "max_staleness: "),
        ({"algorithm": {"preset": "ppo"}}, "algorithm.preset: "),
    ],
)
def test_a_bad_setting_is_named_with_its_reason(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRequest) as caught:
        validate({**GUEST, **change}, GrpoConfig)
    assert caught.value.message.startswith(reason)


def test_a_file_of_another_method_is_refused() -> None:
    with pytest.raises(BadRequest, match="this file is of a grpo job: run it with `grpo`, not `sft`"):
        validate(GUEST, SftConfig)


def test_a_resolved_configuration_is_read_back_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    file = tmp_path / "job.toml"
    file.write_text(
        f'method = "grpo"\nroot = "{tmp_path}"\nmodel = "{BASE}"\ndata = "rows.jsonl"\neval_data = "rows.jsonl"\n'
        '[[rewards]]\nname = "regex"\noptions = {pattern = "a\\\\d", ignore_case = true}\n'
        '[rollout]\nmax_running = 4\n[rollout.own]\nmodel = "m"\nreserved_for_rollout = 3\n'
        'args = {"max-num-seqs" = 8}\n'
    )
    job = load_job(file, ["rollout.max_running=8", "algorithm.preset=dapo"], GrpoConfig)
    assert (job.rollout.max_running, job.algorithm.preset) == (8, "dapo")
    assert job.eval_data == str(tmp_path / "rows.jsonl")
    written = tmp_path / "config.toml"
    written.write_text(job.to_toml())
    assert load_job(written) == job


def test_a_job_has_no_remote_engine_of_its_own() -> None:
    far = {"kind": "remote", "model": "theirs", "url": "http://host/v1"}
    with pytest.raises(ValueError, match=r"own\.kind: a remote server takes no adapters"):
        RolloutConfig.model_validate({"own": far})
