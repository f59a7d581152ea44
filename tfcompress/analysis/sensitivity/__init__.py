"""What each option costs each layer."""
