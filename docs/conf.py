"""The site, as Sphinx reads it: `make site` gathers its pages with `docs/site.py`."""

project = "CutPaste, reproduced"
author = "The CutPaste study"
extensions = ["myst_nb"]
nb_execution_mode = "off"  # notebooks are shown as they were executed
nb_code_prompt_show, nb_code_prompt_hide = "Show the code", "Hide the code"
nb_merge_streams = True
nb_render_markdown_format = "gfm"
myst_heading_anchors = 4
suppress_warnings = ["myst.header", "toc.not_included"]
html_theme = "furo"
html_title = project
html_copy_source = html_show_sourcelink = False
html_show_sphinx = False
html_theme_options = {"light_css_variables": {"color-brand-primary": "#00568a", "color-brand-content": "#00568a"}}
html_static_path = ["static"]
html_css_files = ["site.css"]
