"""`python -m app`."""

import os
import sys
import threading

from app.cli.parser import main

if __name__ == "__main__":
    code = main(sys.argv[1:])
    if threading.active_count() > 1:
        # At exit Python joins the threads of an upload, and one that hangs would keep the
        # process beyond GRACE_SECONDS. What it has not committed does not exist.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
