"""yayan (雅言): teach an open language model a new language."""

from importlib.metadata import version

__version__ = version("yayan")
