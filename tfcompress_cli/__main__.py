"""`python -m tfcompress_cli`, which is `tfcompress` where no console script is installed."""

import sys

from tfcompress_cli.main import main

if __name__ == "__main__":
    sys.exit(main())
