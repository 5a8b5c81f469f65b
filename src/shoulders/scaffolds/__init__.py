"""What is trained around the frozen model."""
