"""What the int8 runtime computes at each operator, and the layers that compute it in Keras."""
