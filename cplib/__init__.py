"""cplib: CutPaste (Li et al., CVPR 2021), self-supervised anomaly detection and localization.

The way of the data, one module a step:
`data` > `color`, `patches`, `augment` > `model`, `train` > `gde` > `experiment` > `report`, `plots`.
`backbone`, `finetune` > `transfer` > `transfer_record` do the same for networks pretrained on ImageNet.
"""
