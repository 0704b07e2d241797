"""Which draft list each request is on."""
