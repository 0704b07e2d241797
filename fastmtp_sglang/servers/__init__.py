"""Around a running server: its command line, its process, its HTTP client, two of them compared."""
