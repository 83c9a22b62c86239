"""`tandem versions export` finds an adapter's files and its unquantized base, and hands the work to the learner."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner

from engines.adapter import base_hash_of
from engines.errors import BadRequest
from gateway.cli import export as module
from gateway.cli.commands import app
from gateway.client import Engine, Generation, Version

WEIGHTS = Path(__file__).parents[4] / "learners" / "toy" / "weights"


class Gateway:
    """Knows one version, and an engine of these generations."""

    def __init__(self, row: Version, models: Mapping[str, Path]) -> None:
        self.row = row
        self.models = models

    def __enter__(self) -> Gateway:
        return self

    def __exit__(self, *_: object) -> None: ...

    def version(self, name: str) -> Version:
        assert name == self.row.id
        return self.row

    def engine(self, name: str) -> Engine:
        assert name == "small"
        generations = [generation(one, model) for one, model in self.models.items()]
        live = list(self.models)[-1]
        return Engine(id=name, live=f"{live}@0", model=str(self.models[live]), generations=generations)


def generation(name: str, model: Path) -> Generation:
    return Generation(
        id=name, engine="small", version=f"{name}@0", state="live", model=str(model),
        reason=None, steps=[], step=None, is_under_way=False,
    )  # fmt: skip


class Site:
    """A configuration whose engine serves `model`, and what the learner was told."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root, self.patch = root, patch
        self.told: list[str] = []
        patch.setattr(module, "run_learners", lambda *words: self.told.extend(words))
        patch.setenv("TANDEM_JOBS__ROOT", str(root / "jobs"))

    def export(
        self, *words: str, model: Path = WEIGHTS / "base", job: str | None = None, released: Path | None = None
    ) -> str:
        row = Version(
            id="vqa@3", alias="vqa", state="live", engine="small.g2" if released else "small", job=job,
            path=str(self.root / "vqa@3"), base_hash=base_hash_of(WEIGHTS / "base"),
        )  # fmt: skip
        models = {"small": model} | ({"small.g2": released} if released else {})
        self.patch.setattr(module, "client", lambda *_: Gateway(row, models))
        file = self.root / "tandem.toml"
        file.write_text(f'[engines.small]\nmodel = "{model}"\nkind = "fake"\n[models.vqa]\nengine = "small"\n')
        result = CliRunner().invoke(app, ["versions", "export", *words, "--config", str(file)])
        if result.exception is not None:
            raise result.exception
        return result.output

    def option(self, name: str) -> str:
        return self.told[self.told.index(f"--{name}") + 1]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.chdir(tmp_path)
    return Site(tmp_path, monkeypatch)


def test_a_version_is_exported_from_the_registry_onto_its_engines_own_base(site: Site) -> None:
    said = site.export("vqa@3", "--scheme", "w4a16-rtn")
    assert site.told[0] == "export"
    assert site.option("model") == str(WEIGHTS / "base")
    assert site.option("adapter") == str(site.root / "vqa@3")
    assert (site.option("scheme"), site.option("version")) == ("w4a16-rtn", "vqa@3")
    assert f"tandem engines release small {site.option('out')}" in said


def test_a_version_of_a_released_base_is_exported_onto_that_for_the_configured_engine(site: Site) -> None:
    said = site.export("vqa@3", model=WEIGHTS / "base-fp8", released=WEIGHTS / "base")
    assert site.option("model") == str(WEIGHTS / "base")
    assert f"tandem engines release small {site.option('out')}" in said


def test_where_the_engine_serves_a_quantized_copy_the_job_says_the_base(site: Site) -> None:
    job = site.root / "jobs" / "teal"
    job.mkdir(parents=True)
    (job / "config.toml").write_text(f"model = {json.dumps(str(WEIGHTS / 'base'))}\n")
    site.export("vqa@3", model=WEIGHTS / "base-fp8", job="teal")
    assert site.option("model") == str(WEIGHTS / "base")


def test_a_base_that_nobody_names_is_asked_for(site: Site) -> None:
    with pytest.raises(BadRequest, match="serves a quantized copy, and no job of vqa@3 names"):
        site.export("vqa@3", model=WEIGHTS / "base-fp8")
    assert site.told == []


def test_another_base_than_the_versions_is_refused(site: Site) -> None:
    other = shutil.copytree(WEIGHTS / "base", site.root / "other")
    (other / "tandem_base.json").write_text(json.dumps({"base_hash": "sha256:" + "0" * 64}))
    with pytest.raises(BadRequest, match="was trained on another base"):
        site.export("vqa@3", "--base", str(other))
    assert site.told == []


def test_a_directory_is_exported_with_the_base_that_is_named(site: Site) -> None:
    (site.root / "dora").mkdir()
    with pytest.raises(BadRequest, match="does not say its base"):
        site.export("./dora")
    site.export("./dora", "--base", str(WEIGHTS / "base"), "--scheme", "none", "--set", "num_rows=3")
    assert site.option("adapter") == str(site.root / "dora")
    assert "--version" not in site.told
    assert site.told[-1] == "num_rows=3"


def test_relative_paths_start_where_the_command_runs(site: Site, tmp_path: Path) -> None:
    site.export("vqa@3", "--out", "here")
    assert site.option("out") == str(tmp_path / "here")
