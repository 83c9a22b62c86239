from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from engines.errors import ConfigError
from engines.types import VersionName
from gateway.config import MAX_ENGINE_CHARS, GatewayConfig, TandemConfig, load_config
from gateway.generation import GenerationRow, GenerationState

FILE = """
[engines.small]
model = "base"
kind = "fake"
[models.vqa]
engine = "small"
[gateway]
port = 7000
"""

COMMIT = "0" * 40


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    path = tmp_path / "deploy" / "tandem.toml"
    path.parent.mkdir()
    path.write_text(FILE)
    return path


def test_command_line_beats_environment_beats_file_beats_default(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert GatewayConfig().port == 8000
    assert load_config(file).gateway.port == 7000
    monkeypatch.setenv("TANDEM_GATEWAY__PORT", "7001")
    assert load_config(file).gateway.port == 7001
    assert load_config(file, {"gateway": {"port": 7002}}).gateway.port == 7002


def test_environment_reaches_into_named_sections(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_ENGINES__SMALL__MAX_LORAS", "7")
    engine = load_config(file).engines["small"]
    assert (engine.max_loras, engine.kind) == (7, "fake")


def test_relative_paths_are_taken_from_the_current_directory(file: Path, tmp_path: Path) -> None:
    config = load_config(file, {"store": {"url": "sqlite:///x/t.db", "media": "file://m"}, "jobs": {"root": "j"}})
    assert config.store.url == f"sqlite:///{tmp_path}/x/t.db"
    assert config.store.media == f"file://{tmp_path}/m"
    assert config.jobs.root == tmp_path / "j"
    assert config.engines["small"].model == str(tmp_path / "base")


def test_store_and_jobs_lie_under_the_data_root(file: Path, tmp_path: Path) -> None:
    config = load_config(file, {"data": "demo"})
    assert config.store.url == f"sqlite:///{tmp_path}/demo/tandem.db"
    assert config.store.media == f"file://{tmp_path}/demo/media"
    assert (config.jobs.root, config.registry_root) == (tmp_path / "demo/jobs", tmp_path / "demo/registry")


SAMPLE = """
[engines.small]
model = "org/name"
family = "auto"
kind = "fake"
replicas = 1
tensor_parallel = 1
quantization = "auto"
max_loras = 4
reserved_for_rollout = 0
max_lora_rank = 16
python = ""
args = {}
[models.vqa]
engine = "small"
[gateway]
host = "127.0.0.1"
port = 8000
[store]
url = "sqlite:///data/tandem.db"
media = "file://data/media"
[jobs]
root = "data/jobs"
[ray]
address = "auto"
[learn]
mode = "manual"
"""


def test_every_key_of_the_contract_is_read(tmp_path: Path) -> None:
    (tmp_path / "tandem.toml").write_text(SAMPLE)
    config = load_config(tmp_path / "tandem.toml")
    assert (config.learn.mode, config.engines["small"].reserved_for_rollout) == ("manual", 0)


def test_enough_slots_for_every_alias_are_taken(file: Path) -> None:
    overrides = {"models": {"two": {"engine": "small"}}, "engines": {"small": {"max_loras": 5}}}
    assert len(load_config(file, overrides).models) == 2


def test_a_hub_id_becomes_its_snapshot_in_the_cache(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / COMMIT
    (snapshot.parents[1] / "refs").mkdir(parents=True)
    (snapshot.parents[1] / "refs" / "main").write_text(COMMIT)
    snapshot.mkdir(parents=True)
    overrides = {"engines": {"small": {"kind": "vllm", "model": "org/name"}}}
    with pytest.raises(ConfigError, match="hf download org/name"):
        load_config(file, overrides)
    (snapshot / "config.json").write_text("{}")
    assert load_config(file, overrides).engines["small"].model == str(snapshot)


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:8000"), ("localhost", "http://localhost:8000"), ("::1", "http://[::1]:8000")],
)
def test_url_of_the_gateway(host: str, url: str) -> None:
    assert GatewayConfig(host=host).url == url


def test_models_of_fake_engines_and_server_urls_stay_as_they_are(file: Path) -> None:
    overrides = {
        "engines": {"small": {"model": "org/name"}},
        "store": {"url": "postgresql://h/db", "media": "s3://b/m"},
    }
    config = load_config(file, overrides)
    assert config.engines["small"].model == "org/name"
    assert (config.store.url, config.store.media) == ("postgresql://h/db", "s3://b/m")


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ({"gatway": {}}, "gatway: unknown key; did you mean 'gateway'?"),
        ({"gateway": {"prt": 1}}, "gateway.prt: unknown key; did you mean 'port'?"),
        ({"engines": {"small": {"max_lora": 4}}}, "engines.small.max_lora: unknown key; did you mean 'max_loras'?"),
        ({"gateway": {"port": "x"}}, "gateway.port: "),
        ({"gateway": {"port": 0}}, "gateway.port: "),
        ({"learn": {"mode": "continuous"}}, "learn.mode: "),
        (
            {"models": {"two": {"engine": "small"}}},
            "engines.small.max_loras: 2 aliases need 5 slots, a live and a previous version each",
        ),
        (
            {"engines": {"small": {"reserved_for_rollout": 2}}},
            "engines.small.max_loras: 1 aliases need 5 slots, a live and a previous version each, one to stage the "
            "next in, and 2 reserved for rollouts",
        ),
        (
            {"engines": {"small": {"kind": "vllm", "model": "org/none"}}},
            "engines.small.model: no such directory, and the hub cache has no org/none; download it first with: "
            "hf download org/none",
        ),
        (
            {"engines": {"small": {"kind": "vllm", "model": "some/where/else"}}},
            "engines.small.model: no such directory: some/where/else",
        ),
        ({"gateway": {"host": "0.0.0.0"}}, "gateway.host: '0.0.0.0' is not loopback"),
        ({"models": {"vqa": {"engine": "smal"}}}, "models.vqa.engine: no engine 'smal'; configured: small"),
        ({"models": {"small": {"engine": "small"}}}, "models.small: an engine has this name"),
        ({"models": {"a b": {"engine": "small"}}}, "'a b' is not a name"),
        ({"models": {"small.g2": {"engine": "small"}}}, "'small.g2': names that end like this"),
        (
            {"engines": {51 * "x": {"kind": "fake", "model": "m"}}},
            f"engines.{51 * 'x'}: an engine's name has at most 50",
        ),
        ({"store": 3}, "store: "),
    ],
)
def test_each_mistake_is_named_by_its_path(file: Path, overrides: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(file, overrides)
    assert any(said.startswith(line) for said in caught.value.message.splitlines()), caught.value.message


def test_every_generation_of_the_longest_engine_name_has_a_name(file: Path) -> None:
    name = "x" * MAX_ENGINE_CHARS
    assert name in load_config(file, {"engines": {name: {"kind": "fake", "model": "m"}}}).engines
    row = GenerationRow(name, 10**9 - 1, GenerationState.LIVE, Path("m"), datetime.now(UTC))
    assert VersionName.parse(str(row.base)) == row.base


def test_all_mistakes_are_said_at_once(file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(file, {"gateway": {"prt": 1, "port": -1}, "lern": {}})
    assert len(caught.value.message.splitlines()) == 3


def test_unknown_section_of_the_environment_is_an_error(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_GATWAY__PORT", "1")
    with pytest.raises(ConfigError, match="TANDEM_GATWAY__PORT: no section 'gatway'; did you mean 'gateway'"):
        load_config(file)


@pytest.mark.parametrize(("text", "reason"), [("[", "not TOML"), (None, "no such file")])
def test_unreadable_file_is_named(tmp_path: Path, text: str | None, reason: str) -> None:
    path = tmp_path / "x.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=reason):
        load_config(path)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.1.2.3"])
def test_loopback_hosts_are_taken(host: str) -> None:
    assert GatewayConfig(host=host).host == host


def test_every_directory_is_absolute_also_by_default() -> None:
    config = load_config()
    assert all(path.is_absolute() for path in (config.data, config.run_root, config.log_root, config.jobs.root))


def test_defaults_alone_are_a_configuration() -> None:
    assert TandemConfig().engines == {}
