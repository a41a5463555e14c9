"""Augmentations: `tasks` lists the proxy tasks, `views` their classes, `patches` cuts and pastes, `color` jitters."""
