"""Judges: whoever gives verdicts on answers, behind `evals.records.Judge`.

exact        exact and normalized match with the reference
world        the facts of the built-in clips
own_model    a model of the run, by log-probabilities or by what it writes
endpoint     any server of OpenAI-compatible chat completions
"""
