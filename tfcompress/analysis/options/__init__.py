"""What may be done to a layer, and the model that a choice of it gives."""
