"""Evaluation as published: zero-shot scores, with intervals, on cohorts and on public test sets."""
