"""Tokens out of models."""
