"""The fast path: each unique prompt goes through the model once, however many completions it has.

`packing.py` packs `[prompt][completion 1]..[completion G]` into one row without padding, `attention.py` keeps the
completions apart, `packed_logprobs.py` gives the log-probabilities of the plain path from packed rows, and `compat.py`
decides which models can do so. Generation from one prefill is in `rollouts/engines/`.
"""
