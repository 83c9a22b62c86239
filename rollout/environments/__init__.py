"""Environments: what a conversation is opened with, and what answers the model between its turns."""

from rollout.environments.protocol import Environment
from rollout.environments.registry import load_environment

__all__ = ["Environment", "load_environment"]
