"""Files: written whole or not at all, and read with suspicion. Imports nothing of tfcompress."""
