# RevBiFPN on ImageNet-1k. The paper's recipe is not known: this is timm's documented one for EfficientNets (RandAugment,
# random erasing, label smoothing, EMA), with the published models' dropout and stochastic depth. Not run on ImageNet yet.
_base_ = ["classification_runtime.py", "datasets/imagenet.py", "schedules/imagenet_450e.py"]

model = dict(
    type="ImageClassifier",
    name="revbifpn_s0",
    num_classes=1000,
    model_args=dict(),  # reversible=False, exact=True, drop_rate=..., drop_path_rate=...
    loss=dict(loss_type="ce", smoothing=0.1),
    # mixup=dict(mixup_alpha=0.2, cutmix_alpha=1.0): timm's arguments; S4 to S6 have Mixup
    checkpoint=None,  # weights to begin with
    data_preprocessor=dict(type="ImagePreprocessor", channels_last=True, random_erasing=dict(probability=0.2, mode="pixel")),
)

custom_hooks = [
    dict(type="NonFiniteLossHook", action="stop"),
    dict(type="EMAHook", ema_type="ExponentialMovingAverage", momentum=1e-4, update_buffers=True),
    dict(type="AverageBuffersHook"),
    dict(type="ExactResumeHook"),
]
