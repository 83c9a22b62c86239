"""`demo-report.json`, and the table that the demo ends with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from engines.adapter.files import write_atomic

if TYPE_CHECKING:
    from rich.console import RenderableType


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Accuracy(Part):
    """Shares of the held-out questions that were answered exactly right."""

    base: float
    sft: float
    rollback: float
    grpo: float


class KindAccuracy(Part):
    """The same by kind of question."""

    base: dict[str, float]
    sft: dict[str, float]
    rollback: dict[str, float]
    grpo: dict[str, float]


class FeedbackCount(Part):
    """Corrections sent, and rows that the gateway holds of them."""

    sent: int
    stored: int


class Publication(Part):
    """The swap, made on all `replicas` at once: `seconds` from call to flip, `steps` by name."""

    version: str
    seconds: float
    steps: dict[str, float]
    replicas: tuple[str, ...]


class GrpoFigures(Part):
    """The GRPO job: its first and last rewards are means over a few steps; `mismatch` is the largest of all pushes, a
    mean absolute log-probability; `bound_by`: what the run waited for in the end.

    `eval_parent` and `eval_best`: mean rewards of greedy answers by the adapter that the job began with, and by its
    best checkpoint, made in step `best_step`; 0 is the one it began with.
    """

    steps: int
    best_step: int
    eval_parent: float
    eval_best: float
    reward_first: float
    reward_last: float
    staleness_mean: float
    mismatch: float
    bound_by: str


class LoadFigures(Part):
    """The background load. `wrong_version`: replies that speak as another version than the one they name.

    `by_replica`: how many each replica answered. `errors`: why requests failed, each reason once.
    """

    requests: int
    failed: int
    wrong_version: int
    ttft_ms_p50: float
    ttft_ms_p99: float
    in_flight_at_flip: int
    differing_questions: int
    by_replica: dict[str, int]
    errors: tuple[str, ...] = ()


class DemoReport(Part):
    """All figures of one demo."""

    engine: str
    model: str
    data: str
    replicas: int
    held_out: int
    accuracy: Accuracy
    by_kind: KindAccuracy
    feedback: FeedbackCount
    publish: Publication
    grpo: GrpoFigures
    publish_grpo: Publication
    load: LoadFigures
    seconds: dict[str, float]

    def write(self, path: Path) -> None:
        write_atomic(path, self.model_dump_json(indent=2).encode() + b"\n")

    def failures(self) -> list[str]:
        """What did not hold although no step raised. Accuracy is reported, not judged."""
        load, feedback = self.load, self.feedback
        checks = (
            (
                load.failed == 0,
                f"{load.failed} of {load.requests} background requests failed: {', '.join(load.errors)}",
            ),
            (
                load.wrong_version == 0,
                f"{load.wrong_version} background replies speak as another version than they name",
            ),
            (load.in_flight_at_flip > 0, "no background request was under way at the flip"),
            (load.differing_questions > 0, "no background question tells the versions apart"),
            (
                len(self.publish.replicas) == self.replicas,
                f"the swap was made on {len(self.publish.replicas)} of {self.replicas} replicas",
            ),
            (
                set(self.publish.replicas) <= set(load.by_replica),
                f"not every replica answered the background load: {load.by_replica}",
            ),
            (feedback.stored == feedback.sent, f"{feedback.sent} corrections sent, {feedback.stored} stored"),
        )
        return [reason for holds, reason in checks if not holds]


def render(report: DemoReport) -> RenderableType:
    """The final table: accuracy by kind and version, then one line for each other promise."""
    from rich import box
    from rich.console import Group
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=f"accuracy on {report.held_out} held-out questions", title_justify="left")
    table.add_column("kind")
    for name in ("base", "sft", "rollback", "grpo"):
        table.add_column(name, justify="right")
    kinds = report.by_kind
    for kind in kinds.base:
        table.add_row(kind, *(f"{shares[kind]:.3f}" for shares in (kinds.base, kinds.sft, kinds.rollback, kinds.grpo)))
    totals = report.accuracy
    table.add_row("[b]all", *(f"[b]{share:.3f}" for share in (totals.base, totals.sft, totals.rollback, totals.grpo)))
    facts = Table.grid(padding=(0, 2))
    for name, text in _facts(report):
        facts.add_row(name, text)
    return Group(table, facts)


def _facts(report: DemoReport) -> tuple[tuple[str, str], ...]:
    load, publish = report.load, report.publish
    swap_ms = publish.seconds * 1000
    return (
        ("engine", f"{report.engine}, {report.model}"),
        ("corrections", f"{report.feedback.sent} sent, {report.feedback.stored} stored"),
        (
            "swap",
            f"{publish.version} live on {' and '.join(publish.replicas)} {swap_ms:.0f} ms after the call, "
            f"{load.in_flight_at_flip} under way",
        ),
        (
            "GRPO",
            f"{report.grpo.steps} steps: reward {report.grpo.reward_first:.3f} to {report.grpo.reward_last:.3f}, "
            f"best checkpoint step {report.grpo.best_step} "
            f"(evaluation {report.grpo.eval_parent:.3f} to {report.grpo.eval_best:.3f}), "
            f"staleness {report.grpo.staleness_mean:.2f}, mismatch {report.grpo.mismatch:.4f}, "
            f"bound by {report.grpo.bound_by}",
        ),
        (
            "background load",
            f"{load.requests} requests, {load.failed} failed, {load.wrong_version} of a wrong version; "
            f"first token {load.ttft_ms_p50:.0f} ms median, {load.ttft_ms_p99:.0f} ms p99",
        ),
        ("by replica", ", ".join(f"{name} answered {number}" for name, number in load.by_replica.items())),
        ("time", f"{report.seconds['total']:.0f} s in all"),
    )
