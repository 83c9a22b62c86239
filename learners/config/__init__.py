"""The configuration of a training job: one TOML file in, one frozen value out. Imports no model library.

The gateway reads it too, to refuse a bad hyperparameter by name before a job starts.
"""

from learners.config.export import ExportConfig, Scheme
from learners.config.grpo import Algorithm, GrpoConfig
from learners.config.job import DEFAULT_ROOT, JobConfig
from learners.config.load import METHODS, ROOT_VARIABLE, load_export, load_job, resolve, validate
from learners.config.sft import SftConfig

__all__ = [
    "DEFAULT_ROOT",
    "METHODS",
    "ROOT_VARIABLE",
    "Algorithm",
    "ExportConfig",
    "GrpoConfig",
    "JobConfig",
    "Scheme",
    "SftConfig",
    "load_export",
    "load_job",
    "resolve",
    "validate",
]
