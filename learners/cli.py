"""The learners' command line: results on stdout, narration on stderr.

Exit codes: 0 ok, 1 failed or cancelled, 2 usage or configuration, 4 the parent's adapter was refused.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from typer.core import TyperGroup

from engines.errors import AdapterRefused, BadRequest, TandemError
from learners.config import GrpoConfig, JobConfig, Scheme, SftConfig, load_export, load_job
from learners.status import JobResult, JobStatus

EXIT_FAILED, EXIT_USAGE, EXIT_REFUSED = 1, 2, 4


class _Group(TyperGroup):
    """Mounts `toy` only when it is asked for: its command line belongs to another part."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        return [*super().list_commands(ctx), "toy"]

    def get_command(self, ctx: typer.Context, cmd_name: str):  # type: ignore[no-untyped-def, override]
        if cmd_name != "toy":
            return super().get_command(ctx, cmd_name)
        from learners.toy.cli import app as toy

        return typer.main.get_command(toy)


app = typer.Typer(
    cls=_Group, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Train adapters."
)
data_app = typer.Typer(no_args_is_help=True, help="Look at data files.")
app.add_typer(data_app, name="data")

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The job's TOML file.")]
OverridesOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Overrides one setting; repeatable.")
]


@app.command()
def sft(config: ConfigOption, overrides: OverridesOption = None, as_json: JsonOption = False) -> None:
    """Train a LoRA adapter on the answers of a data file. Run the same job again to resume it."""
    job = load_job(config, overrides or (), SftConfig)
    from learners.sft import run_sft

    _finish(job, run_sft(job), as_json=as_json)


@app.command()
def grpo(config: ConfigOption, overrides: OverridesOption = None, as_json: JsonOption = False) -> None:
    """Train a LoRA adapter on rewards for what engines sample. Run the same job again to resume it."""
    job = load_job(config, overrides or (), GrpoConfig)
    from learners.grpo.run import run_grpo

    _finish(job, run_grpo(job), as_json=as_json)


@app.command()
def export(
    config: Annotated[Path | None, typer.Option("--config", "-c", help="The export's TOML file.")] = None,
    model: Annotated[Path | None, typer.Option(help="The unquantized base.")] = None,
    adapter: Annotated[Path | None, typer.Option(help="The adapter; also a DoRA, or one of the vision tower.")] = None,
    scheme: Annotated[Scheme | None, typer.Option(help="How the language linears are stored.")] = None,
    out: Annotated[Path | None, typer.Option(help="The directory to write.")] = None,
    data: Annotated[Path | None, typer.Option(help="Rows that the export is judged on.")] = None,
    calibration: Annotated[Path | None, typer.Option(help="Rows that GPTQ and AWQ are fitted to.")] = None,
    version: Annotated[str | None, typer.Option(help="The version that the adapter is registered as.")] = None,
    overrides: OverridesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Merge an adapter into its base, quantize, load, judge, and write one model directory."""
    given: dict[str, object] = {"model": model, "adapter": adapter, "scheme": scheme, "out": out, "data": data}
    given |= {"calibration": calibration, "version": version}
    options = {name: str(value) for name, value in given.items() if value is not None}
    settings = load_export(config, overrides or (), options)
    from learners import quiet
    from learners.export.run import run_export
    from learners.export.table import print_table

    quiet.prepare(settings.num_threads)
    report = run_export(settings, _say)
    if as_json:
        print(report.model_dump_json(indent=2, exclude={"probe"}))
    else:
        print_table(report)
    _say(f"written to {settings.out}")


@app.command()
def inspect(
    model: Annotated[Path, typer.Argument(help="A model's directory.")],
    out: Annotated[Path, typer.Option("--out", help="Where a random adapter for it is written.")],
    num_threads: Annotated[int, typer.Option("--threads", help="Threads of the CPU's matrix products.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Load a model with transformers: its parts, its chat template, and what it says with a random adapter."""
    from learners.inspection.inspect import inspect as look

    found = look(model, out, num_threads)
    if as_json:
        print(found.model_dump_json(indent=2))
    else:
        print(f"{found.architecture or 'not loaded'}, {found.num_parameters / 1e6:.1f} million parameters")
        for part in found.parts:
            print(
                f"{part.part}: {part.num_modules} linears under {part.prefix or '(the root)'}: {' '.join(part.leaves)}"
            )
    for fault in found.faults:
        _say(f"{fault.step}: {fault.reason}")
    if found.faults:
        raise typer.Exit(EXIT_FAILED)


@data_app.command("check")
def data_check(
    file: Annotated[Path, typer.Argument(help="A JSONL or Parquet file.")], as_json: JsonOption = False
) -> None:
    """Read every row and image; say which rows are bad, and why. Exits 1 if any is."""
    from learners.data.report import check

    report = check(file)
    if as_json:
        print(report.model_dump_json(indent=2))
    else:
        print(f"{report.num_rows} rows, {report.num_examples} examples, {report.num_images} images")
        print(f"{report.num_rejected} bad rows" + (f", in {report.rejected_file}" if report.rejected_file else ""))
        for row in report.rejected[:20]:
            print(f"  line {row.line}: {row.reason}")
    if report.num_rejected or not report.num_rows:
        raise typer.Exit(EXIT_FAILED)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and exits. What is wrong ends in one message on stderr, a defect in one line."""
    try:
        app(args=list(arguments) if arguments is not None else None, prog_name="python -m learners")
    except TandemError as error:
        _say(error.message)
        if error.detail:
            _say(error.detail)
        sys.exit(exit_code_of(error))
    except Exception as error:  # the boundary of the process; a job's traceback is in its events
        _say(f"{type(error).__name__}: {error}".partition("\n")[0])
        sys.exit(EXIT_FAILED)


def exit_code_of(error: TandemError) -> int:
    if isinstance(error, BadRequest):
        return EXIT_USAGE
    return EXIT_REFUSED if isinstance(error, AdapterRefused) else EXIT_FAILED


def _finish(job: JobConfig, result: JobResult, *, as_json: bool) -> None:
    _say(f"{result.status.value}: {result.message}")
    print(result.model_dump_json(indent=2) if as_json else _checkpoint_line(job.job_path, result.best_checkpoint))
    if result.status is not JobStatus.SUCCEEDED:
        raise typer.Exit(EXIT_FAILED)


def _checkpoint_line(job: Path, best: str | None) -> str:
    return str(job / best) if best else str(job)


def _say(text: str) -> None:
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)
