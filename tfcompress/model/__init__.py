"""What we know of Keras models, and the one mechanism that every technique shares."""
