"""Where frames come from. A source decodes; a reader fits its pictures to the model and offers them."""
