"""Prompts of many kinds, made from what is at hand: `fastmtp data prompts`."""
