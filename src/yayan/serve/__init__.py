"""Models for people and for programs."""
