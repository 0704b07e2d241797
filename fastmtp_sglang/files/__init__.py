"""What is read and written on disk, the same way by every command."""
