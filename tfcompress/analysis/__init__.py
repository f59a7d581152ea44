"""What each layer costs, and the smallest model that loses no more than is allowed."""
