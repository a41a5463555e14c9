"""cplib: CutPaste (Li et al., CVPR 2021), self-supervised anomaly detection and localization.

Imports point one way: `config`, `data` > `augment` > `model` > `train` > `gde` > `localize`, `synthetic` > `runs` >
`report` > `detect`. `python -m cplib` is the command line.
"""
