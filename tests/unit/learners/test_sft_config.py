import subprocess
import sys
from pathlib import Path

import pytest

from engines.config import Section
from engines.errors import BadRequest
from learners.config import ROOT_VARIABLE, Algorithm, GrpoConfig, SftConfig, load_job, validate
from learners.submission import VARIABLE
from rollout.config import RewardConfig, RolloutConfig


@pytest.fixture
def job_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(ROOT_VARIABLE, raising=False)
    monkeypatch.delenv(VARIABLE, raising=False)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    (tmp_path / "rows.jsonl").write_text("")
    file = tmp_path / "job.toml"
    file.write_text(f'root = "{tmp_path}"\nmodel = "base"\ndata = "rows.jsonl"\nname = "one"\n')
    return file


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("learning_rat=1e-3", "learning_rat: no such setting; did you mean learning_rate?"),
        ("zzz=1", "zzz: no such setting"),
        ("rank=0", "rank: "),
        ("rank=sixteen", "rank: "),
        ("rank=513", "rank: "),
        ("learning_rate=-1", "learning_rate: "),
        ("gradient_accumulation=3", "gradient_accumulation: must divide batch_size, which is 16"),
        ("method=other", "method: "),
        ("name=../elsewhere", "name: "),
        ("model=nowhere", "model: "),
        ("data=nothing.jsonl", "data: no file at"),
        ("parent=nothing", "parent: "),
        ("no-equals-sign", "--set: "),
    ],
)
def test_a_bad_setting_is_named_with_its_reason(job_file: Path, override: str, reason: str) -> None:
    with pytest.raises(BadRequest) as caught:
        load_job(job_file, [override])
    assert caught.value.message.startswith(reason)


def test_every_bad_setting_has_a_line_of_its_own() -> None:
    with pytest.raises(BadRequest) as caught:
        validate({"model": "m", "data": "d", "rank": 0, "sed": 1})
    assert [line.partition(":")[0] for line in caught.value.message.splitlines()] == ["rank", "sed"]


def test_epochs_and_max_steps_exclude_each_other() -> None:
    with pytest.raises(BadRequest, match="epochs and max_steps exclude each other"):
        validate({"model": "m", "data": "d", "epochs": 1, "max_steps": 1})


def test_what_is_resolved_reads_back_as_itself(job_file: Path, tmp_path: Path) -> None:
    job = load_job(job_file, ["seed=7", 'parent_version="vqa@3"', "learning_rate=5e-4"])
    written = tmp_path / "resolved.toml"
    written.write_text(job.to_toml())
    assert load_job(written) == job
    assert (job.seed, job.parent_version, job.learning_rate) == (7, "vqa@3", 5e-4)


def test_relative_paths_start_at_the_root(job_file: Path, tmp_path: Path) -> None:
    job = load_job(job_file)
    assert (Path(job.model), Path(job.data), job.job_path) == (
        tmp_path / "base",
        tmp_path / "rows.jsonl",
        tmp_path / "one",
    )


def test_the_root_comes_from_the_environment_where_the_file_has_none(
    job_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_file.write_text('model = "base"\ndata = "rows.jsonl"\n')
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    assert load_job(job_file).job_path == tmp_path / "sft"


def test_in_rays_copy_relative_paths_need_an_absolute_root(
    job_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, '{"metadata": {"job_submission_id": "raysubmit_1"}}')
    assert load_job(job_file).job_path == tmp_path / "one"
    with pytest.raises(BadRequest, match=r"^root: this job runs in a copy that Ray deletes"):
        load_job(job_file, ["root=data/jobs"])


def test_a_quantized_base_is_refused(job_file: Path, tmp_path: Path) -> None:
    (tmp_path / "base" / "config.json").write_text('{"quantization_config": {}}')
    with pytest.raises(BadRequest, match=r"^model: .* is quantized"):
        load_job(job_file)


@pytest.mark.parametrize("content", ["rank = ", "\x00", "[[["])
def test_what_is_no_toml_is_a_clear_error(job_file: Path, content: str) -> None:
    job_file.write_text(content)
    with pytest.raises(BadRequest, match="is not TOML"):
        load_job(job_file)


@pytest.mark.parametrize("section", [SftConfig, GrpoConfig, Algorithm, RolloutConfig, RewardConfig])
def test_every_setting_is_described(section: type[Section]) -> None:
    assert [name for name, field in section.model_fields.items() if not field.description] == []


def test_the_configuration_imports_no_model_library() -> None:
    script = "import sys, learners.config; print(sorted({'torch', 'numpy', 'transformers', 'ray'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[]", b"[" * 100_000])
def test_a_malformed_model_config_names_the_model(job_file: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "base" / "config.json").write_bytes(content)
    with pytest.raises(BadRequest, match=r"^model: .*config\.json is not"):
        load_job(job_file)
