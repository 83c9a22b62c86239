"""An export's report for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from learners.export.report import ExportReport, Judged


def print_table(report: ExportReport) -> None:
    """On stdout."""
    table = Table("", "unquantized", report.method.scheme.value, "difference", box=None)
    before, after = report.bytes_before, report.bytes_after
    table.add_row("weights, MB", f"{before / 1e6:.2f}", f"{after / 1e6:.2f}", f"x {after / before:.3f}")
    if report.unquantized_quality and report.quality:
        for row in _quality_rows(report.unquantized_quality, report.quality):
            table.add_row(*row)
    table.add_row("load test", "", _load_test(report), "")
    console = Console(soft_wrap=True)
    console.print(table)
    for warning in report.warnings:
        console.print(f"WARNING: {warning}", style="bold red", markup=False, highlight=False)


def _quality_rows(before: Judged, after: Judged) -> tuple[tuple[str, ...], ...]:
    perplexity = after.perplexity - before.perplexity
    exact = after.exact_match - before.exact_match
    return (
        ("perplexity", f"{before.perplexity:.4f}", f"{after.perplexity:.4f}", f"{perplexity:+.4f}"),
        (f"exact match of {after.num_rows}", f"{before.exact_match:.3f}", f"{after.exact_match:.3f}", f"{exact:+.3f}"),
    )


def _load_test(report: ExportReport) -> str:
    tested = report.load_test
    if tested.status == "not tested":
        return f"not load-tested here: {tested.reason}"
    if tested.exact_match is None:
        return "started; nothing asked"
    return f"passed: {tested.exact_match:.3f} of {tested.num_questions}"
