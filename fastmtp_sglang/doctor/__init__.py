"""Tools that look at an installation: `fastmtp doctor` and the page of what is supported."""
