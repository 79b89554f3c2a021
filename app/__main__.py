"""`python -m app`: the words of a command line come in, the exit code goes out."""

import sys

from app.cli.parser import main
from app.process import end_process, keep_standard_streams

if __name__ == "__main__":
    keep_standard_streams()
    try:
        code = main(sys.argv[1:])
    except SystemExit as end:  # argparse has printed its help, or a library ends the process
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    end_process(code)
