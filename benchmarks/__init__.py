"""Time the operators against torch's, on the rows that the tests read."""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler, which measures memory, says hello otherwise
