"""What SGLang asks of a plugin and what we use of it: a table of hooks, our name, refusals."""
