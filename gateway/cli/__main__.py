"""`python -m gateway.cli` is `tandem`."""

from __future__ import annotations

from gateway.cli.commands import main

main()
