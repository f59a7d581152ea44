"""Lists what is in a .tflite: `python tools/inspect_tflite.py [--json] FILE.tflite`."""

from tfcompress.tools.inspect_tflite import run

if __name__ == "__main__":
    run()
