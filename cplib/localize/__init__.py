"""Where the defects are: `patch_maps` scores patches, `pixels` maps and measures them, `gradcam` is the rival."""
