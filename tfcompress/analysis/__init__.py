"""What each layer costs, what compression lost, and the smallest model that loses no more."""
