"""Engines: what serves a model, and the vocabulary that the whole of Tandem shares."""
