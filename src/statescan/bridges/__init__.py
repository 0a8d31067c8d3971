"""Our models where other libraries look for theirs: nothing here is imported, and no library needed, until it is called.

- `statescan.bridges.timm.register()`: `timm.create_model("statescan_vim_tiny")`.
- `statescan.bridges.huggingface.register()`: folders that `AutoModelForImageClassification` loads.
"""
