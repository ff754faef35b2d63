# MMDetection's default runtime, and this project's hooks for long trainings.
_base_ = "mmdet::_base_/default_runtime.py"

custom_imports = dict(imports=["revbifpn.integrations.mmdet", "revbifpn.integrations.hooks"])

custom_hooks = [
    # A NaN or infinite loss stops the training with the step's number; action="skip" leaves the step out instead.
    dict(type="NonFiniteLossHook", action="stop"),
    # --resume goes on with the random state of the checkpoint.
    dict(type="ExactResumeHook"),
]
