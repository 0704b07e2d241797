"""The MTP head: its configuration, torch module, checkpoint and SGLang serving model."""
