"""Whether this process is the entrypoint of a Ray job, and of which one."""

from __future__ import annotations

import os

from pydantic import BaseModel, Field, ValidationError

VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray's job supervisor for the entrypoint: the job's configuration as JSON."""


class _Metadata(BaseModel):
    job_submission_id: str | None = None


class _RayJob(BaseModel):
    metadata: _Metadata = Field(default_factory=_Metadata)


def submission_id() -> str | None:
    """The id that `ray job submit` printed, or None outside of Ray Jobs."""
    text = os.environ.get(VARIABLE)
    if text is None:
        return None
    try:
        return _RayJob.model_validate_json(text).metadata.job_submission_id
    except ValidationError:
        return None  # another program's variable: this is no job of Ray's
