"""Measurements of a network on windows of labelled areas."""
