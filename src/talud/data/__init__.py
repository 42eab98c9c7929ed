"""Preparation of stacks, masks and patches."""
