"""The `tandem` command. One file per noun; nothing heavy is imported before a verb runs."""

from __future__ import annotations

from gateway.cli.commands import main

__all__ = ["main"]
