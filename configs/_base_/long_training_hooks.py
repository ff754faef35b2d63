# This project's hooks for long trainings.
custom_hooks = [
    # A NaN or infinite loss stops the training with the step's number; action="skip" leaves the step out instead.
    dict(type="NonFiniteLossHook", action="stop"),
    # --resume goes on with the random state of the checkpoint.
    dict(type="ExactResumeHook"),
]
