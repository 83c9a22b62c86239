"""`tandem doctor MODEL`: whether a vision-language model can be served and trained here, of a known family or not.

family, scheme      its config.json, and the rules of `engines.schemes`
transformers        `python -m learners inspect`, a child: parts, chat template, fixed answers, a random adapter
serves, parity      an engine of its own, asked the same; then the same adapter
"""
