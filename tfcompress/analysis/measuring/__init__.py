"""What is measured of models and files: outputs, metrics, and how sure they are."""
