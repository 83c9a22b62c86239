"""kill -9 of a writer: each row that it acknowledged is there exactly once, and none is half written."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

from gateway.store import InteractionQuery, open_store

WRITER = """
import sys
from datetime import UTC, datetime
from engines.types import VersionName
from gateway.store import open_store
from gateway.types import Feedback, FeedbackStatus, Interaction
store = open_store(sys.argv[1])
first, n = sys.argv[2], 0
while True:
    n += 1
    name, now = f"chatcmpl-{first}-{n}", datetime.now(UTC)
    base = VersionName("small", 0)
    asked = Interaction(name, now, "vqa", base, "small/0", "{}", "a", "stop", 1, 1, 1.0, 1.0, 200, False)
    store.interactions.add_all([asked])
    status, key = FeedbackStatus.ACCEPTED, f"key-{first}-{n}"
    said = Feedback(f"fb-{first}-{n}", name, "thumb", "true", None, now, status, key, "h")
    (stored,) = store.feedback.add_all([said])
    print(stored.row.id, flush=True)
"""


def test_acknowledged_feedback_outlives_a_kill(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/tandem.db"
    acknowledged: list[str] = []
    for first in ("a", "b"):
        with subprocess.Popen([sys.executable, "-c", WRITER, url, first], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            num_lines = random.Random(first).randint(5, 200)
            acknowledged += [writer.stdout.readline().strip() for _ in range(num_lines)]
            writer.kill()
            # What it had printed before it died was acknowledged too; its last line may be cut.
            acknowledged += [line.strip() for line in writer.stdout.readlines() if line.endswith("\n")]
    store = open_store(url)
    stored = [row.id for row in store.feedback.of_metric("thumb")]
    assert len(stored) == len(set(stored))
    assert set(acknowledged) <= set(stored)
    assert len(stored) <= len(acknowledged) + 2
    page = store.interactions.list(InteractionQuery(limit=100))
    assert all(row.answer == "a" for row in page.rows)
    store.close()
