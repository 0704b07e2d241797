"""Single requests: what is refused of them, and what is counted for them."""
