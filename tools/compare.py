"""Compares two model files: `python tools/compare.py A B --data digits`."""

from tfcompress.tools.compare import run

if __name__ == "__main__":
    run()
