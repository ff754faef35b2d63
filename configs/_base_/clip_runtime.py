# Runtime of clip classification: that of images, with clips' data sets and metrics, and the best epoch kept by macro-F1.
_base_ = "classification_runtime.py"

custom_imports = dict(imports=["revbifpn.training.clips", "revbifpn.training.hooks"])
default_hooks = dict(checkpoint=dict(save_best="mean/macro_f1", rule="greater"))
