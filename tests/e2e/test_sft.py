"""The learner as a process: what a job trains, and what it leaves when it is killed."""

import base64
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from engines.adapter import ProbeRecord, read_base, read_manifest, tensor_hashes, verify
from gateway.jobs import read_job
from learners.events import consumed_rows, read_events
from learners.job import JobDirectory
from learners.status import JobStatus

COLORS = ("red", "green", "blue", "yellow")
NUM_ROWS, BATCH_SIZE, SAVE_EVERY = 60, 4, 4
NUM_STEPS = NUM_ROWS // BATCH_SIZE
TIMEOUT_S = 150.0

pytestmark = pytest.mark.timeout(400)


@dataclass(frozen=True)
class Site:
    """A random base, a data file, and the directory of all jobs."""

    base: Path
    data: Path
    root: Path

    def start(self, name: str, *settings: str) -> subprocess.Popen[str]:
        file = self.root / f"{name}.toml"
        file.write_text(
            f'name = "{name}"\nroot = "{self.root}"\nmodel = "{self.base}"\ndata = "{self.data}"\n'
            f"batch_size = {BATCH_SIZE}\nsave_every = {SAVE_EVERY}\nlearning_rate = 5e-3\nprobe_size = 3\n"
        )
        command = [sys.executable, "-m", "learners", "sft", "--config", str(file), "--json"]
        command += [part for setting in settings for part in ("--set", setting)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})

    def job(self, name: str) -> JobDirectory:
        return JobDirectory(self.root / name)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    from learners.toy.families import FAMILIES
    from learners.toy.model import build_model, save
    from learners.toy.tokenizer import build_tokenizer

    root = tmp_path_factory.mktemp("sft")
    family = FAMILIES["qwen3_vl"]
    tokenizer = build_tokenizer([f"what color is the shape? {color}" for color in COLORS] * 10, family)
    save(build_model(family, tokenizer, seed=3), family.build_processor(tokenizer), root / "base")
    rows = root / "rows.jsonl"
    with rows.open("w") as file:
        for number in range(NUM_ROWS):
            color = random.Random(number).choice(COLORS)
            buffer = io.BytesIO()
            Image.new("RGB", (64, 64), color).save(buffer, "PNG")
            (root / f"{number}.png").write_bytes(buffer.getvalue())
            row = {"image": f"{number}.png", "text": "what color is the shape?", "answer": color}
            file.write(json.dumps(row) + "\n")
    return Site(root / "base", rows, root)


@pytest.fixture(scope="module")
def trained(site: Site) -> JobDirectory:
    child = site.start("whole")
    out, err = child.communicate(timeout=TIMEOUT_S)
    assert child.returncode == 0, err
    assert json.loads(out)["status"] == "succeeded"
    return site.job("whole")


def wait_for_step(job: JobDirectory, child: subprocess.Popen[str], step: int) -> None:
    """Until the log holds `step` of the present run, and the run has not ended."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline and child.poll() is None:
        events = list(read_events(job.events_file))
        start = max((index for index, event in enumerate(events) if event.type == "started"), default=len(events))
        if any(event.type == "step" and event.data["step"] >= step for event in events[start:]):
            return
        time.sleep(0.01)
    pytest.fail(f"step {step} was not reached: {child.communicate(timeout=10)}")


def test_the_loss_falls_and_every_row_is_used_once(trained: JobDirectory) -> None:
    losses = [event.data["loss"] for event in read_events(trained.events_file) if event.type == "step"]
    assert len(losses) == NUM_STEPS
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    assert sorted(consumed_rows(trained.events_file), key=int) == [str(line + 1) for line in range(NUM_ROWS)]


def test_every_checkpoint_is_an_adapter_that_an_engine_may_see(trained: JobDirectory, site: Site) -> None:
    base = read_base(site.base)
    folders = sorted(trained.checkpoints.iterdir())
    assert {folder.name for folder in folders} == {"step-4", "step-8", "step-12", "step-15"}
    for folder in folders:
        verified = verify(folder, base, max_rank=16)
        assert verified.manifest is not None
        assert len(verified.modules) == len(base.modules)
        assert verified.manifest.tensors == dict(tensor_hashes(folder / "adapter_model.safetensors"))
        assert {path.name for path in folder.iterdir()} == {
            "adapter_config.json",
            "adapter_model.safetensors",
            "manifest.json",
            "trainer_state",
        }


def test_the_result_names_the_last_checkpoint_and_its_metrics(trained: JobDirectory) -> None:
    result = trained.read_result()
    assert result is not None
    assert (result.status, result.step, result.num_steps) == (JobStatus.SUCCEEDED, NUM_STEPS, NUM_STEPS)
    assert result.best_checkpoint == "checkpoints/step-15"
    assert {"loss", "token_accuracy"} <= result.metrics.keys()


def test_the_probe_is_what_the_plain_base_and_the_merged_adapter_say(trained: JobDirectory, site: Site) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = trained.checkpoints / "step-15"
    records = read_manifest(folder).probe
    assert len(records) == 3
    processor = AutoProcessor.from_pretrained(site.base)
    plain = AutoModelForImageTextToText.from_pretrained(site.base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(
        AutoModelForImageTextToText.from_pretrained(site.base, dtype=torch.float32), folder
    ).merge_and_unload()
    for record in records:
        ids, base_logprobs = scored(plain, processor, record)
        assert ids == list(record.token_ids)
        assert processor.tokenizer.decode(ids) == f"{record.answer}<|im_end|>"
        assert base_logprobs == pytest.approx(record.base_logprobs, abs=1e-4)
        adapter_logprobs = scored(merged, processor, record)[1]
        assert adapter_logprobs == pytest.approx(record.adapter_logprobs, abs=1e-3)
        assert sum(adapter_logprobs) > sum(base_logprobs) + 1


def scored(model: object, processor: object, record: ProbeRecord) -> tuple[list[int], list[float]]:
    """The last `num_tokens` ids of the rendered conversation and their log-probabilities, by transformers alone."""
    import torch

    assert record.image is not None
    image = Image.open(io.BytesIO(base64.b64decode(record.image.partition(",")[2])))
    chat = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": record.text}]},
        {"role": "assistant", "content": [{"type": "text", "text": record.answer}]},
    ]
    text = processor.apply_chat_template(chat, tokenize=False)
    inputs = processor(text=[text], images=[image], return_tensors="pt")
    with torch.inference_mode():
        logprobs = model(**inputs).logits[0].log_softmax(-1)
    ids = inputs["input_ids"][0].tolist()
    positions = range(len(ids) - record.num_tokens, len(ids))
    return ids[-record.num_tokens :], [logprobs[position - 1, ids[position]].item() for position in positions]


def test_cancelled_then_killed_then_resumed_it_trains_what_an_undisturbed_job_trains(
    trained: JobDirectory, site: Site
) -> None:
    job = site.job("disturbed")
    child = site.start("disturbed")
    wait_for_step(job, child, 2)
    child.send_signal(signal.SIGTERM)
    out, _ = child.communicate(timeout=TIMEOUT_S)
    assert (child.returncode, json.loads(out)["status"]) == (1, "cancelled")
    cancelled, newest = job.read_result(), job.newest_checkpoint()
    assert cancelled is not None
    assert newest is not None
    assert newest.step == cancelled.step < NUM_STEPS

    child = site.start("disturbed")
    wait_for_step(job, child, newest.step + 2)
    child.kill()
    child.communicate(timeout=TIMEOUT_S)
    killed = job.read_result()
    assert killed is not None
    assert killed.status is JobStatus.RUNNING
    assert not job.is_running()
    assert read_job(job.path).status == "killed"
    latest = job.newest_checkpoint()
    assert latest is not None
    assert killed.best_checkpoint == f"checkpoints/{latest.path.name}"
    assert (killed.step, killed.num_steps, killed.num_rows) == (latest.step, NUM_STEPS, NUM_ROWS)
    assert killed.metrics == {
        name: value for name, value in read_manifest(latest.path).metrics.items() if name != "step"
    }

    child = site.start("disturbed")
    out, err = child.communicate(timeout=TIMEOUT_S)
    assert child.returncode == 0, err
    assert json.loads(out)["metrics"]["train_seconds"] > killed.metrics["train_seconds"]
    assert consumed_rows(job.events_file) == consumed_rows(trained.events_file)
    last = f"step-{NUM_STEPS}"
    assert read_manifest(job.checkpoints / last).tensors == read_manifest(trained.checkpoints / last).tensors


def test_a_job_goes_on_from_a_parent_and_counts_its_bad_rows(trained: JobDirectory, site: Site) -> None:
    rows = site.root / "more.jsonl"
    long = {"text": "what color is the shape? " * 40, "answer": "red"}
    rows.write_text(site.data.read_text() + "{\n" + json.dumps(long) + "\n")
    parent = trained.checkpoints / "step-15"
    child = site.start(
        "more",
        f"data={rows}",
        f"parent={parent}",
        "parent_version=vqa@1",
        "max_length=100",
        "max_bad_fraction=0.1",
        "max_steps=2",
        "gradient_accumulation=2",
    )
    _, err = child.communicate(timeout=TIMEOUT_S)
    assert child.returncode == 0, err
    job = site.job("more")
    rejected = [json.loads(line) for line in (job.path / "rejected.jsonl").read_text().splitlines()]
    assert [row["line"] for row in rejected] == [NUM_ROWS + 1, NUM_ROWS + 2]
    result, manifest = job.read_result(), read_manifest(job.checkpoints / "step-2")
    assert result is not None
    assert (result.num_rows, result.num_rejected) == (NUM_ROWS + 2, 2)
    assert manifest.parent == "vqa@1"
    first = next(event.data["loss"] for event in read_events(job.events_file) if event.type == "step")
    losses = [event.data["loss"] for event in read_events(trained.events_file) if event.type == "step"]
    assert first < losses[0] / 2


def test_too_many_bad_rows_fail_the_job_and_say_so(site: Site) -> None:
    rows = site.root / "bad.jsonl"
    rows.write_text(site.data.read_text() + "{\n")
    child = site.start("bad", f"data={rows}")
    out, err = child.communicate(timeout=TIMEOUT_S)
    assert (child.returncode, out) == (1, "")
    assert "1 of 61 rows are bad" in err
    result = site.job("bad").read_result()
    assert result is not None
    assert result.status is JobStatus.FAILED
    assert "line 61" in (result.message or "")


def test_a_finished_job_run_again_answers_and_changes_nothing(trained: JobDirectory, site: Site) -> None:
    before = trained.events_file.read_bytes()
    child = site.start("whole")
    out, _ = child.communicate(timeout=TIMEOUT_S)
    assert (child.returncode, json.loads(out)["status"]) == (0, "succeeded")
    assert trained.events_file.read_bytes() == before
