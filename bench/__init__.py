"""What measures the recipe, side by side with what its users would run instead: `make bench`."""
