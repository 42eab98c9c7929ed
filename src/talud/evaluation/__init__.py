"""Scores of shipped models, promotion, and the report."""
