"""The head in SGLang: its model, its last layer over draft lists, its deferred keys."""
