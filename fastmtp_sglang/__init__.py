"""FastMTP for SGLang: one recursive MTP head, drafted and verified inside SGLang.

Importing this package costs nothing: SGLang loads `plugin.register` and `cpu.activate` through
entry points in every process it starts, so torch and SGLang are imported only where they are used.
"""

__version__ = "0.1.0"
