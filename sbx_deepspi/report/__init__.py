"""``python -m sbx_deepspi.report MODEL.zip``: one page that shows what a model has learned of its environment."""
