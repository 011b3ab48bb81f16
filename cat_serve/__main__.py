"""Run the command line as `python -m cat_serve`."""

import sys

from cat_serve.cli import main

if __name__ == "__main__":
    sys.exit(main())
