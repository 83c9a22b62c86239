"""Every check of the doctor says OK where all is well, and WARN or FAIL with a command that mends it where not."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from doctor_context import CPU_BUILD, CUDA_BUILD, TOY, configured, free_port, replica, running, script

import gateway.doctor as doctor
from engines.capabilities import Ability, Capabilities
from engines.errors import EngineDown
from engines.schemes import MachineKind
from gateway.doctor import CHECKS, Context, Finding, Level, diagnose, folders, interpreters, is_well, survey
from gateway.doctor.accelerators import check_accelerators, check_memory
from gateway.doctor.elsewhere import check_remote_servers
from gateway.doctor.finding import fail, ok, warn, worst
from gateway.doctor.folders import (
    check_data_directory,
    check_disk,
    check_filesystem,
    check_open_files,
    check_shared_memory,
)
from gateway.doctor.interpreters import check_engine_packages, check_packages, check_python
from gateway.doctor.machine import GIB, Machine
from gateway.doctor.models import check_models
from gateway.doctor.schemes import check_schemes

NO_AVX, AVX = "flags\t: fpu sse2 avx2\n", "flags\t: fpu avx2 avx512f\n"


def expect(finding: Finding, level: Level, words: str = "", mend: str = "") -> None:
    assert finding.level is level, finding
    assert words in finding.found
    assert mend in finding.mend
    assert bool(finding.mend) == (level is not Level.OK)


def test_python_is_new_enough(tmp_path: Path) -> None:
    context = Context(configured(tmp_path))
    expect(check_python(context), Level.OK, "Python 3.")
    old = replace(context, machine=Machine(python_version=(3, 10)))
    expect(check_python(old), Level.FAIL, "Python 3.10", "python3.11")


def test_packages_that_lack_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = Context(configured(tmp_path))
    expect(check_packages(context), Level.OK)
    monkeypatch.setattr(interpreters, "_TRAINING", ("torch_of_nobody",))
    expect(check_packages(context), Level.WARN, "torch_of_nobody", "pip install torch_of_nobody")
    monkeypatch.setattr(interpreters, "_OURS", ("fastapi", "ray_of_nobody"))
    expect(check_packages(context), Level.FAIL, "lacks ray_of_nobody", "pip install")


@pytest.mark.parametrize(
    ("body", "level", "words"),
    [
        ("""echo '{"version": "0.32.0", "is_cpu": true}'""", Level.OK, "vLLM 0.32.0 for CPUs"),
        ("""echo '{"version": "0.26.1", "is_cpu": false}'""", Level.OK, "vLLM 0.26.1 in"),
        ("""echo '{"version": "0.9.2", "is_cpu": false}'""", Level.WARN, "vLLM 0.9.2"),
        ("""echo '{"version": "", "is_cpu": false}'""", Level.FAIL, "has no vLLM"),
        ("echo Python 2.7", Level.FAIL, "did not say which vLLM"),
    ],
)
def test_each_interpreter_is_asked_for_its_vllm(tmp_path: Path, body: str, level: Level, words: str) -> None:
    python = script(tmp_path / "python", body)
    finding = check_engine_packages(survey(configured(tmp_path, kind="vllm", python=python), None, None))
    expect(finding, level, words, f"{python} -m pip install vllm" if level is not Level.OK else "")


def test_an_interpreter_that_is_not_there_is_said(tmp_path: Path) -> None:
    context = survey(configured(tmp_path, kind="vllm", python=f"{tmp_path}/none/python"), None, None)
    expect(check_engine_packages(context), Level.FAIL, "cannot be run")
    expect(check_engine_packages(Context(configured(tmp_path))), Level.OK)


def test_an_interpreter_that_does_not_answer_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.doctor.context._BUILD_TIMEOUT_S", 0.3)
    python = script(tmp_path / "python", "exec sleep 60")
    context = survey(configured(tmp_path, kind="vllm", python=python), None, None)
    expect(check_engine_packages(context), Level.FAIL, "did not say which vLLM it has within")


def test_a_model_is_there_whole_and_of_a_known_family(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"architectures": ["Qwen3VLForConditionalGeneration"]}')
    context = Context(configured(tmp_path, kind="vllm", model=str(model)))
    expect(check_models(context), Level.FAIL, "lacks model.safetensors", "hf download")
    (model / "model.safetensors").write_bytes(b"weights")
    expect(check_models(context), Level.OK, "qwen3_vl")
    (model / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    expect(check_models(context), Level.FAIL, "lacks model-1.safetensors")
    (model / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    expect(check_models(context), Level.FAIL, "no known family")
    (model / "config.json").write_text("{")
    expect(check_models(context), Level.FAIL, "cannot be read as JSON")
    model.rename(tmp_path / "elsewhere")
    expect(check_models(context), Level.FAIL, "is no directory", "hf download")
    expect(check_models(Context(configured(tmp_path))), Level.OK)


def test_a_scheme_that_this_machine_cannot_serve_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = {"small": CPU_BUILD}
    expect(check_schemes(Context(configured(tmp_path, kind="vllm"), builds=build)), Level.OK, "unquantized on cpu-")
    online = Context(configured(tmp_path, kind="vllm", quantization="fp8"), builds=build)
    expect(check_schemes(online), Level.FAIL, "cannot serve online-fp8", f"tandem doctor {TOY}")
    monkeypatch.setattr("engines.schemes.here", lambda: MachineKind.CPU_AVX2)
    sglang = Context(configured(tmp_path, kind="sglang"))
    expect(check_schemes(sglang), Level.FAIL, "sglang cannot serve unquantized on cpu-avx2")
    expect(check_schemes(Context(configured(tmp_path))), Level.OK)


def test_gpus_are_counted_against_replicas_and_tensor_parallel(tmp_path: Path) -> None:
    two = script(tmp_path / "nvidia-smi", "echo 'NVIDIA H100, 81559 MiB'; echo 'NVIDIA H100, 81559 MiB'")
    broken = script(tmp_path / "broken", "echo 'Driver/library version mismatch' >&2; exit 18")

    def check(smi: str, ray: str = "", **engine: object) -> Finding:
        config = configured(tmp_path, ray, kind="vllm", **engine)
        return check_accelerators(Context(config, machine=Machine(nvidia_smi=smi), builds={"small": CUDA_BUILD}))

    expect(check(two, replicas=2), Level.OK, "2 GPUs (NVIDIA H100")
    expect(check(two, tensor_parallel=2), Level.OK)
    expect(check(two, replicas=2, tensor_parallel=2), Level.FAIL, "need 4 GPUs", "engines.small.replicas=1")
    expect(check(two, ray="10.0.0.1:6379", replicas=3), Level.WARN, "other nodes", "ray status")
    expect(check(broken), Level.FAIL, "version mismatch")
    expect(check(f"{tmp_path}/none"), Level.FAIL, "CUDA build")


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="AVX-512 is of x86")
def test_a_cpu_that_is_slow_says_why(tmp_path: Path) -> None:
    def check(flags: str, build: object = CPU_BUILD, **engine: object) -> Finding:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{flags}")
        config = configured(tmp_path, kind="vllm", **engine)
        return check_accelerators(Context(config, machine=Machine(proc=tmp_path), builds={"small": build}))

    expect(check(AVX), Level.OK, "on the CPU")
    expect(check(NO_AVX), Level.WARN, "AVX-512")
    expect(check(AVX, replicas=64), Level.WARN, "64 replicas share", "engines.small.replicas=1")
    expect(check(AVX, tensor_parallel=2), Level.FAIL, "CPU build", "engines.small.tensor_parallel=1")
    expect(check_accelerators(Context(configured(tmp_path))), Level.OK)


def test_memory_is_weighed_against_what_does_not_run_yet(tmp_path: Path) -> None:
    def check(gib: float, in_service: int = 0, replicas: int = 4) -> Finding:
        (tmp_path / "meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable: {int(gib * GIB / 1024)} kB\n")
        config = configured(tmp_path, kind="vllm", replicas=replicas)
        served = running(config, *(replica(f"small/{number}") for number in range(in_service)))
        machine = Machine(proc=tmp_path, cgroup=tmp_path)
        return check_memory(Context(config, machine=machine, builds={"small": CPU_BUILD}, running=served))

    expect(check(64), Level.OK, "64.0 GiB free")
    expect(check(6), Level.WARN, "6.0 GiB free", "engines.small.replicas=1")
    expect(check(2), Level.FAIL)
    expect(check(2, in_service=4), Level.OK)
    (tmp_path / "memory.max").write_text(f"{3 * GIB}\n")
    (tmp_path / "memory.current").write_text(f"{2 * GIB}\n")
    expect(check(64), Level.FAIL, "1.0 GiB free")
    (tmp_path / "memory.max").write_text("max\n")
    expect(check(64), Level.OK)


def test_shared_memory_is_there_and_not_tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = Context(configured(tmp_path), machine=Machine(shm=tmp_path))
    monkeypatch.setattr(folders, "LOW_SHM_BYTES", 0)
    expect(check_shared_memory(context), Level.OK)
    monkeypatch.setattr(folders, "LOW_SHM_BYTES", 2**70)
    expect(check_shared_memory(context), Level.WARN, "little", "remount")
    none = replace(context, machine=Machine(shm=tmp_path / "none"))
    expect(check_shared_memory(none), Level.WARN, "there is no", "mkdir")


def test_a_disk_that_fills_is_said_before_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = Context(configured(tmp_path))
    for low, full, level in ((0, 0, Level.OK), (2**70, 0, Level.WARN), (2**70, 2**70, Level.FAIL)):
        monkeypatch.setattr(folders, "LOW_DISK_BYTES", low)
        monkeypatch.setattr(folders, "FULL_DISK_BYTES", full)
        expect(check_disk(context), level, "GiB free under", "du " if level is not Level.OK else "")


def test_a_low_limit_on_open_files_is_said(tmp_path: Path) -> None:
    context = Context(configured(tmp_path))
    with open_files(256):
        expect(check_open_files(context), Level.WARN, "256 files", "ulimit -n")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= folders.LOW_OPEN_FILES:
        with open_files(folders.LOW_OPEN_FILES):
            expect(check_open_files(context), Level.OK)


@contextmanager
def open_files(limit: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_data_directory_can_be_written_or_made(tmp_path: Path) -> None:
    config = configured(tmp_path)
    expect(check_data_directory(Context(config)), Level.OK, "can be made")
    config.data.mkdir()
    expect(check_data_directory(Context(config)), Level.OK, "is writable")
    assert list(config.data.iterdir()) == []
    config.data.rmdir()
    config.data.write_text("in the way")
    expect(check_data_directory(Context(config)), Level.FAIL, "is a file", "mv ")
    nowhere = config.model_copy(update={"data": Path("/proc/tandem/data")})
    expect(check_data_directory(Context(nowhere)), Level.FAIL, "/proc cannot be written", "chown")


def test_sqlite_on_a_network_file_system_is_warned_of(tmp_path: Path) -> None:
    def check(kind: str, url: str = "") -> Finding:
        proc = tmp_path / "proc"
        (proc / "self").mkdir(parents=True, exist_ok=True)
        (proc / "self" / "mountinfo").write_text(
            f"20 1 254:0 / / rw - ext4 /dev/vda rw\n25 20 0:40 / {tmp_path} rw,relatime - {kind} server:/export rw\n"
        )
        config = configured(tmp_path)
        if url:
            config = config.model_copy(update={"store": config.store.model_copy(update={"url": url})})
        return check_filesystem(Context(config, machine=Machine(proc=proc)))

    expect(check("ext4"), Level.OK, "lies on ext4")
    expect(check("nfs4"), Level.WARN, "lies on nfs4", "store.url")
    expect(check("fuse.sshfs"), Level.WARN)
    expect(check("nfs4", "postgresql://db/tandem"), Level.OK)


def test_a_check_that_stumbles_is_a_finding_and_hides_no_other(tmp_path: Path) -> None:
    def check_that_breaks(_context: Context) -> Finding:
        raise ZeroDivisionError("of a check")

    def check_behind_it(_context: Context) -> Finding:
        return ok("fine")

    found = list(diagnose(Context(configured(tmp_path)), (check_that_breaks, check_behind_it)))
    assert [checked.check for checked in found] == ["that breaks", "behind it"]
    expect(found[0].finding, Level.FAIL, "ZeroDivisionError: of a check", "tandem")
    expect(found[1].finding, Level.OK)
    assert not is_well(found)
    assert is_well(found[1:])


def test_the_worst_of_several_findings_counts() -> None:
    assert worst([ok("a"), warn("b", "mend b"), ok("c")]) == warn("b", "mend b")
    assert worst([warn("a", "mend a"), fail("b", "mend b"), fail("c", "mend c")]) == fail("b; c", "mend b")
    assert worst([ok("a"), ok("b")]) == ok("a; b")


def test_commands_name_the_configuration(tmp_path: Path) -> None:
    context = Context(configured(tmp_path), file=Path("my file.toml"))
    assert context.restart == "tandem stop -c 'my file.toml' && tandem serve --detach -c 'my file.toml'"
    assert Context(context.config).tandem("stop") == "tandem stop"


def test_each_check_is_in_the_table_once() -> None:
    written = {value for module in vars(doctor).values() for name, value in _checks_of(module)}
    assert len(CHECKS) == len(set(CHECKS)) == len(written)


def _checks_of(module: object) -> Iterator[tuple[str, object]]:
    values = vars(module).items() if getattr(module, "__name__", "").startswith("gateway.doctor") else ()
    return ((name, value) for name, value in values if name.startswith("check_"))


def test_the_doctor_loads_no_engine_library_and_reports_what_it_found(tmp_path: Path) -> None:
    code = (
        "import sys, gateway.doctor, gateway.cli.doctor\n"
        "print(sorted({'torch', 'vllm', 'ray', 'transformers'} & {name.split('.')[0] for name in sys.modules}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.strip() == "[]"


def test_what_an_engine_says_is_kept_apart_from_a_build(tmp_path: Path) -> None:
    context = Context(configured(tmp_path, kind="vllm"), builds={"small": EngineDown("no vLLM there")})
    expect(check_engine_packages(context), Level.FAIL, "engine small: no vLLM there")


@pytest.mark.parametrize(
    ("settings", "is_configured"), [((), True), (("--set", "engines.small.kind=vllmm"), False)], ids=["good", "bad"]
)
def test_the_command_exits_3_if_anything_fails(tmp_path: Path, settings: tuple[str, ...], is_configured: bool) -> None:
    (tmp_path / "tandem.toml").write_text(
        f'[engines.small]\nkind = "fake"\nmodel = "{TOY}"\n[models.vqa]\nengine = "small"\n'
        f'[gateway]\nport = {configured(tmp_path).gateway.port}\n[ray]\naddress = ""\n'
    )
    command = [sys.executable, "-m", "gateway.cli", "doctor", "--json", *settings]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    rows = json.loads(run.stdout)
    assert {frozenset(row) for row in rows} == {frozenset({"check", "level", "found", "mend"})}
    assert run.returncode == (3 if any(row["level"] == "FAIL" for row in rows) else 0)
    assert rows[0]["check"] == "configuration"
    assert (rows[0]["level"], len(rows)) == (("OK", len(CHECKS) + 1) if is_configured else ("FAIL", 1))
    assert not (tmp_path / "data").exists()


def test_a_remote_server_says_what_it_cannot_do_or_why_it_does_not_answer(tmp_path: Path) -> None:
    expect(check_remote_servers(Context(configured(tmp_path))), Level.OK, "no engine is a server elsewhere")
    far = {"kind": "remote", "model": "org/theirs", "url": "http://127.0.0.1:9/v1", "api_key_env": "FAR_KEY"}
    context = Context(configured(tmp_path, **far))
    lacking = Capabilities(frozenset({Ability.IMAGES}), frozenset({Ability.ABORTS}))
    well = replace(context, remotes={"small": lacking})
    expect(check_remote_servers(well), Level.OK, "http://127.0.0.1:9/v1; no images; unknown: aborts")
    gone = replace(context, remotes={"small": EngineDown("it cannot be reached", detail="secret")})
    mend = 'curl -sS -H "Authorization: Bearer $FAR_KEY" http://127.0.0.1:9/v1/models'
    expect(check_remote_servers(gone), Level.FAIL, "it cannot be reached", mend)


def test_a_remote_server_takes_nothing_of_this_machine(tmp_path: Path) -> None:
    far = {"kind": "remote", "model": "org/theirs", "url": "http://127.0.0.1:9/v1"}
    context = Context(configured(tmp_path, **far))
    expect(check_memory(context), Level.OK, "take about 0.0 GiB")
    expect(check_accelerators(context), Level.OK, "need none")
    expect(check_models(context), Level.OK, "remote servers have their own")


def test_a_survey_probes_remote_servers_and_a_silent_one_is_a_finding(
    tmp_path: Path,
) -> None:
    far = {"kind": "remote", "model": "org/theirs", "url": f"http://127.0.0.1:{free_port()}/v1"}
    context = survey(configured(tmp_path, **far), None, None)
    expect(check_remote_servers(context), Level.FAIL, "cannot be reached", "/v1/models")
    keyed = survey(configured(tmp_path, **far, api_key_env="NO_SUCH_KEY"), None, None)
    expect(check_remote_servers(keyed), Level.FAIL, "NO_SUCH_KEY is not set", "/v1/models")
