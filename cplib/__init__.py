"""cplib: CutPaste (Li et al., CVPR 2021), self-supervised anomaly detection and localization.

The way of the data, one module a step:
`data` > `color`, `patches`, `augment` > `model`, `train` > `gde` > `experiment` > `report`, `comparison` and
`plots`.
`backbone`, `finetune` > `transfer` > `transfer_record` do the same for networks pretrained on ImageNet.
`localize`, `pixels`, `gradcam` > `patch_experiment` > `patch_report` say where the defects are.
`sensitivity`, `synthetic`, `representation`, `one_class` are tables and figures with runs of their own.
`grid` does runs in slices of time; `claims` sums all up.
"""
