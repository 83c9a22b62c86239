"""Gateway: everything with a user or a row. It never imports torch, vLLM, TRL, PEFT or transformers."""
