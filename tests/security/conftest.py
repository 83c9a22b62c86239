"""The same engine and gateway as the unit tests of the gateway."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_FOLDER = Path(__file__).parents[1] / "unit" / "gateway"
sys.path.insert(0, str(_FOLDER))
_spec = importlib.util.spec_from_file_location("gateway_fixtures", _FOLDER / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
_fixtures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_fixtures)

engine, stack, url = _fixtures.engine, _fixtures.stack, _fixtures.url
