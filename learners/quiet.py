"""Third-party libraries: silent, offline, and with the threads that the job may use."""

from __future__ import annotations

import os
import warnings

SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}


def prepare(num_threads: int) -> None:
    """To be called before torch is imported: its threads are counted at import."""
    os.environ.update(SETTINGS)
    os.environ["OMP_NUM_THREADS"] = str(num_threads)
    warnings.filterwarnings("ignore")

    import torch
    from transformers.utils import logging

    torch.set_num_threads(num_threads)
    logging.disable_progress_bar()
