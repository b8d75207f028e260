"""The fast path: each unique prompt goes through the model once, however many completions it has.

`layout.py` packs `[prompt][completion 1]..[completion G]` into one row without padding, `attention.py` keeps the
completions apart, `scores.py` gives the log-probabilities of the plain path from packed rows, `sampling.py` prefills a
prompt once and samples all of its completions from the repeated cache (`cache.py`), `support.py` decides which models
can do so, and `compat.py` knows what differs between versions of transformers.
"""
