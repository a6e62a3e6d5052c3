"""The pages that people look at."""

import logging

# Where the home folder cannot be written, matplotlib says on its import that it takes a temporary one.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
