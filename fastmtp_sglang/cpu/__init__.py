"""SGLang on a machine without an accelerator: the platform, its attention and its torch ops."""
