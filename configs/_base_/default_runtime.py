# MMDetection's default runtime, and this project's hooks for long trainings.
_base_ = ["mmdet::_base_/default_runtime.py", "long_training_hooks.py"]

custom_imports = dict(imports=["revbifpn.integrations.mmdet", "revbifpn.training.hooks"])
default_hooks = dict(resume_fit=dict(type="ResumeFitHook"))
