"""`python -m icve` is the `icve` command."""

import sys

from icve.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
