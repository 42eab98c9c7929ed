"""Fixtures for the tests of the engine."""

from model_fixtures import away_from_this_project, exporter, model, unets

__all__ = ["away_from_this_project", "exporter", "model", "unets"]
