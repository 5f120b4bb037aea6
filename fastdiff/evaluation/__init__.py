"""Evaluation: how good samples are."""
