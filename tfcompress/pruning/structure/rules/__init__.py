"""Rules: how channels pass through each operation."""
