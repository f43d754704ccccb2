"""What the interpreter and the extension under test were built with."""

import os
import sysconfig

_FLAGS = str(sysconfig.get_config_var("PY_CFLAGS"))
TSAN = "-fsanitize=thread" in _FLAGS
# A sanitizer's own memory grows with what it watches, and its frames are larger.
IS_INSTRUMENTED = "-fsanitize" in _FLAGS or "asan" in os.environ.get("LD_PRELOAD", "")
