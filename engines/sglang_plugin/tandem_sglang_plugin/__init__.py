"""What runs inside SGLang's server process, on the engine's own interpreter: `python -m tandem_sglang_plugin ARGS`.

This folder's parent is put on PYTHONPATH; nothing is installed, and nothing of SGLang is changed: `__main__` adds one
ASGI middleware to SGLang's application and calls SGLang's own launch. Only `__main__` and `inside` import SGLang; the
rest speaks HTTP to the application that it wraps, in this process, so that it can be tested without a GPU. It imports
nothing of Tandem, for that interpreter has no Tandem. Works with SGLang 0.5.17.
"""
