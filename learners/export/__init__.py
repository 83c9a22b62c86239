"""Export: an adapter merged into its base, quantized, loaded for a test, judged, and written as one model directory.

llm-compressor runs in an environment of its own, as a child process: it pins another transformers than ours.
"""
