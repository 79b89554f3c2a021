"""`python -m app`: the words of a command line come in, the exit code goes out."""

import os
import sys
import threading

from app.cli.parser import main

if __name__ == "__main__":
    code = main(sys.argv[1:])
    if threading.active_count() > 1:
        # At exit Python waits for the threads of an upload, and one that hangs would keep the
        # process alive beyond GRACE_SECONDS. Whatever they still upload is not committed.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
