"""How much to draft, and whether drafting helps at all."""
