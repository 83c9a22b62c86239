"""`python -m learners inspect MODEL`: what transformers makes of a model directory, of a known family or not."""
