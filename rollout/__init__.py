"""Rollout: sampling groups of trajectories from engines. It may import `engines`, and nothing above itself."""
