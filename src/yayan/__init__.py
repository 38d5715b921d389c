"""yayan (雅言): teach an open language model a new language."""

import logging
from importlib.metadata import version

__version__ = version("yayan")

# Where bitsandbytes is installed, peft imports it, and it tells of CPU kernels that it misses, and of casts
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
