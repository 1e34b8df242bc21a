# SPDX-License-Identifier: Apache-2.0
"""`python -m viewtime`: the command line, for whoever has the interpreter but not the script."""

import sys

from viewtime.cli import main

if __name__ == "__main__":
    sys.exit(main())
