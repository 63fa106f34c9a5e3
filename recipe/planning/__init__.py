"""What a recipe will need, before anything is downloaded: memory, time, disk."""
