"""What runs inside SGLang's processes: `plugin` registers `algorithm`, which builds `worker`."""
