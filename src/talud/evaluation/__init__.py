"""Evaluation, registration and promotion of models, and the report."""
