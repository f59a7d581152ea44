"""The command line `tfcompress`.

It is a package beside `tfcompress`, because importing that one starts TensorFlow, which takes
seconds. Nothing here imports it before a command runs: `tfcompress --help` answers at once.
"""
