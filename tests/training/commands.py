"""Run by torchrun: `icve` command lines in a JSON file, one after the other, by the same processes."""

import json
import sys
from pathlib import Path

from icve.cli.main import main

if __name__ == "__main__":
    for arguments in json.loads(Path(sys.argv[1]).read_text()):
        if main(arguments) != 0:
            sys.exit(f"failed: {arguments}")
