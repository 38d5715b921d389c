"""The body of `transformers`, our two ends, and what is trained of them."""

import logging

# Where bitsandbytes is installed, peft imports it, and it tells of CPU kernels that it misses, and of casts
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
