"""What runs inside vLLM's API server and its workers, on the engine's own interpreter.

This folder's parent is put on PYTHONPATH together with the `.dist-info` beside it, which is how vLLM finds the entry
point; nothing is installed. It imports nothing of Tandem, for that interpreter has no Tandem. Works with vLLM 0.26
and 0.32.
"""
